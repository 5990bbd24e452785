"""What a run needs before its first task: the machine for itself, a plan, a pool of models, and a memory plan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from prefect import get_run_logger, runtime
from prefect.client.orchestration import get_client

from flows.keys import find_key
from flows.own_thread import held_in_own_thread
from flows.plain_http import without_certificates
from flows.planned import Planned
from flows.pools import run_pool
from flows.snapshot import config_snapshot
from llm_core.answer_cache import AnswerCache
from llm_core.call_params import LoadParams
from llm_core.errors import InsufficientMemory
from llm_core.machine import physical_cores
from llm_core.memory import MemoryEstimates
from llm_core.plan import Plan
from llm_core.pool_protocol import Pool
from llm_core.providers.remote import RemoteModels
from llm_core.residency import Residency, plan_residency
from llm_core.session import Session
from llm_core.settings import Settings
from tasks.run import Run, progress


@dataclass(frozen=True)
class Resources:
    """Held for one run; `residency` is the refusal where the run can never fit."""

    plan: Plan
    pool: Pool
    remote: RemoteModels
    estimates: MemoryEstimates
    answers: AnswerCache
    residency: Residency | InsufficientMemory
    snapshot: dict[str, Any]

    def run(self, session: Session) -> Run:
        """What the tasks share; from here on the pool knows what will be asked for."""
        assert isinstance(self.residency, Residency)
        self.pool.expect(_uses(self.residency))
        return Run(
            self.plan,
            self.residency,
            self.pool,
            self.remote,
            self.estimates,
            session,
            self.answers,
            physical_cores(),
        )


@asynccontextmanager
async def run_resources(planned: Planned, settings: Settings, at_once: int = 1) -> AsyncIterator[Resources]:
    """Get a pool: the model host's, or one of this process when the machine is free for it; and a memory plan for it.

    Args:
        at_once: questions that a dataset run would like to have decoded at the same time.

    Raises:
        GgufFlowError: nothing was started; the message says why.
    """
    estimates = MemoryEstimates(settings.cache_folder)
    async with AsyncExitStack() as held:
        held.enter_context(without_certificates(settings.cache_folder))
        remote = await asyncio.to_thread(_remote_models, planned.running)
        held.callback(remote.close)
        # Loading, closing and waiting block; none of it on the event loop, which answers to cancellation.
        mode, needs_memory = planned.plan.execution_mode, any(call.load for call in planned.running.every_call)
        pooled = run_pool(mode, settings, estimates, say, needs_memory=needs_memory)
        pool = await held.enter_async_context(held_in_own_thread(pooled))
        residency = await asyncio.to_thread(_residency, planned.running, pool, estimates, at_once)
        snapshot = await asyncio.to_thread(config_snapshot, planned, residency, settings)
        answers = AnswerCache(settings.sessions_folder, settings.cache_folder)
        yield Resources(planned.plan, pool, remote, estimates, answers, residency, snapshot)


def _residency(plan: Plan, pool: Pool, estimates: MemoryEstimates, at_once: int) -> Residency | InsufficientMemory:
    try:
        return plan_residency(plan, pool.budget, estimates.need, physical_cores(), at_once)
    except InsufficientMemory as refusal:
        return refusal


def _remote_models(plan: Plan) -> RemoteModels:
    return RemoteModels([(call.model, call.remote) for call in plan.every_call if call.remote], find_key)


def _uses(residency: Residency) -> list[LoadParams]:
    return [placement.load for stage in residency.stages for placement in stage.placements]


async def name_run(name: str) -> None:
    """Give this flow run a name that the UI shows."""
    async with get_client() as client:
        await client.update_flow_run(runtime.flow_run.id, name=name)


def ended_by(error: BaseException) -> Literal["failed", "cancelled"]:
    """The session's status after `error`: a cancellation is none of the run's own errors."""
    return "failed" if isinstance(error, Exception) else "cancelled"


def say(line: str) -> None:
    """Tell who watches the run, here and in the UI."""
    get_run_logger().warning(line)
    progress.get().say(line)
