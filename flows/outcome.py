"""How a run ended: its session's last word, its result or failure, and the artifacts of the whole run."""

import asyncio
from collections.abc import Set
from pathlib import Path
from typing import Any

from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, wait
from prefect.states import Failed

from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import InsufficientMemory, ModelCrashed
from llm_core.machine import gib
from llm_core.model_step import throughput
from llm_core.plan import Plan
from llm_core.pool_protocol import Pool
from llm_core.session import Session
from llm_core.session_records import SessionRecord, StepRecord
from tasks.preflight import refuse
from tasks.record import artifact_key

StepFuture = PrefectFuture[Any]


async def refused(session: Session, refusal: InsufficientMemory) -> State[Any]:
    """A run that can never fit is refused before anything loads, by a failed preflight that the UI shows."""
    future = refuse.submit(refusal)
    await asyncio.to_thread(wait, [future])
    failure = failure_of("preflight", future, session.path)
    session.fail(str(failure))
    return failed(failure)


async def conclude(
    plan: Plan, pool: Pool, session: Session, steps: dict[str, StepFuture], may_fail: Set[str]
) -> PipelineResult | State[Any]:
    """Complete or fail the session by how its tasks ended.

    Args:
        steps: every task of the run, by name.
        may_fail: of members that their stage can do without; whether it did, its aggregation knows.
    """
    records: list[StepRecord] = []
    finished = 0
    failure: PipelineFailed | None = None
    for name, future in steps.items():
        if future.state.is_completed():
            finished += 1
            result = future.result()
            records += [result] if isinstance(result, StepRecord) else []
        elif name in may_fail:
            finished += 1
        elif future.state.is_failed() and failure is None:
            failure = failure_of(name, future, session.path)
    tokens_per_s = throughput(step for step in records if step.id not in session.record.reused)
    artifacts = [_resident_artifact(plan, pool), _timing_artifact(plan, records)]
    if failure or finished < len(steps):
        await asyncio.gather(*artifacts)
        failure = failure or PipelineFailed("a step did not finish", session.path, None)
        session.fail(str(failure), tokens_per_s=tokens_per_s)
        return failed(failure)
    answer = [step for step in records if step.stage == plan.final][-1].text
    session.complete(answer, tokens_per_s)
    await asyncio.gather(_answer_artifact(plan, session.record, answer), *artifacts)
    return PipelineResult(
        session_id=session.record.id,
        session_path=session.path,
        pipeline=plan.pipeline,
        status=session.record.status,
        answer=answer,
        steps=records,
        degraded=session.record.degraded,
    )


def failed(failure: PipelineFailed) -> State[Any]:
    """The end of a flow that has failed.

    Raises:
        PipelineFailed: in place of the state, where the flow has retries: Prefect begins them for what is raised alone.
    """
    context = FlowRunContext.get()
    if context and context.flow and context.flow.retries:
        raise failure
    return Failed(message=str(failure), data=failure)


def failure_of(name: str, future: StepFuture, session_path: Path) -> PipelineFailed:
    try:
        future.result()
    except Exception as error:
        return PipelineFailed(f"step '{name}' failed: {error}", session_path, error)
    raise AssertionError(f"step '{name}' is failed and has a result")


async def _resident_artifact(plan: Plan, pool: Pool) -> None:
    """What is loaded at the end of the run: it stays so in mode `persistent`, and goes in the others."""
    try:
        residents, n_loads = pool.status(), pool.load_count
    except ModelCrashed:
        return  # the host has just gone; the answers are there
    table = [
        {
            "model": resident.model,
            "memory": ", ".join(f"{gib(size)} of {device}" for device, size in resident.bytes.items()),
            "last use": "in use" if resident.idle_s is None else f"{resident.idle_s:.1f} s ago",
            "pinned": "yes" if resident.pinned else "",
        }
        for resident in residents
    ]
    key = artifact_key(plan.pipeline, "resident-models")
    await acreate_table_artifact(key=key, table=table, description=f"Loaded at the end; {n_loads} loads")


async def _answer_artifact(plan: Plan, session: SessionRecord, answer: str) -> None:
    key = artifact_key(plan.pipeline, "final-answer")
    notes = "".join(f"\n\n**Degraded:** {note}" for note in session.degraded)
    await acreate_markdown_artifact(key=key, markdown=f"{answer}{notes}", description=session.question)


async def _timing_artifact(plan: Plan, records: list[StepRecord]) -> None:
    columns = ("load_s", "ttft_s", "tpot_s", "tokens_per_s", "prompt_tokens", "completion_tokens")
    table = [{"step": step.id, **{name: _rounded(getattr(step, name)) for name in columns}} for step in records]
    await acreate_table_artifact(
        key=artifact_key(plan.pipeline, "timings"), table=table, description="Timings per step"
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
