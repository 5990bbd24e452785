"""What the tasks of one flow run share."""

from contextvars import ContextVar
from typing import Protocol

from llm_core.answer_cache import AnswerCache
from llm_core.call_params import LoadParams
from llm_core.machine import Bytes
from llm_core.memory import MemoryEstimates, ModelNeed
from llm_core.plan import Call, Plan, StagePlan
from llm_core.pool_protocol import Pool
from llm_core.providers.local import LocalProvider
from llm_core.providers.protocol import Provider
from llm_core.providers.remote import RemoteModels
from llm_core.residency import Residency, StageResidency
from llm_core.session import Session
from llm_core.session_images import kept_images
from llm_core.session_records import StepRecord
from tasks.quorum import Quorum


class Progress(Protocol):
    """Told what goes on in a run; called from several threads."""

    def begin(self, step: str, model: str) -> None: ...
    def token(self, step: str, n_tokens: int) -> None: ...
    def end(self, step: str, record: StepRecord) -> None: ...
    def begin_items(self, step: str, n_items: int, n_done: int) -> None: ...
    def item(self, step: str, n_tokens: int, failed: bool) -> None: ...
    def end_items(self, step: str) -> None: ...
    def say(self, line: str) -> None: ...
    def approve(self, stage: str, text: str) -> str | None: ...


class Silent:
    """No one is looking."""

    def begin(self, step: str, model: str) -> None: ...
    def token(self, step: str, n_tokens: int) -> None: ...
    def end(self, step: str, record: StepRecord) -> None: ...
    def begin_items(self, step: str, n_items: int, n_done: int) -> None: ...
    def item(self, step: str, n_tokens: int, failed: bool) -> None: ...
    def end_items(self, step: str) -> None: ...
    def say(self, line: str) -> None: ...
    def approve(self, stage: str, text: str) -> str | None:
        """`text` as a person wants it; `None`: nobody is here to ask."""
        return None


progress: ContextVar[Progress] = ContextVar("progress", default=Silent())  # noqa: B039  it holds no state
"""Set by whoever starts a flow in this process and wants to watch it."""


class Run:
    """Plan, models and session of one flow run.

    Not a dataclass: Prefect walks into those when it looks for futures among a task's parameters.
    """

    prefetches = True
    """Whether preflight loads models ahead."""

    def __init__(
        self,
        plan: Plan,
        residency: Residency,
        pool: Pool,
        remote: RemoteModels,
        estimates: MemoryEstimates,
        session: Session,
        answers: AnswerCache,
        cores: int,
    ) -> None:
        self.plan, self.residency, self.pool, self.remote = plan, residency, pool, remote
        self.estimates, self.session, self.answers, self.cores = estimates, session, answers, cores
        placements = [placement for stage in residency.stages for placement in stage.placements]
        self.placed = {p.call: p.load for p in (*placements, *residency.spares)}
        self.spare_threads = {p.call: p.threads for p in residency.spares}
        """Of fallbacks, which no stage's preflight knows."""
        surely = {call for stage in plan.stages for call in stage.surely_asked}
        perhaps = {call for stage in plan.stages for call in stage.calls} - surely
        self.surely_asked = {p.load for p in placements if not p.call.cache and p.call not in perhaps}
        """Loads that somebody will ask, whatever `cache` knows and others answer."""
        self.quorums = {stage.id: Quorum(stage, self._n_done(stage)) for stage in plan.stages if _hurries(stage)}
        """Of the stages that do not wait for all of their members."""
        self.images = kept_images(session.path, session.record.images)
        """Of all items of a dataset, those that the pipeline names."""

    def provider(self, call: Call) -> Provider:
        """Who answers `call`."""
        if call.remote:
            return self.remote.of(call.remote)
        return LocalProvider(self.pool, self.placed[call], call.model)

    def need(self, load: LoadParams) -> ModelNeed:
        return self.estimates.need(load)

    def is_done(self, stage: StagePlan) -> bool:
        """Whether every member that is surely asked has answered already, before this flow run was retried."""
        return all(self._is_done(stage, call) for call in stage.surely_asked)

    def _n_done(self, stage: StagePlan) -> int:
        return sum(self._is_done(stage, call) for call in stage.calls)

    def _is_done(self, stage: StagePlan, call: Call) -> bool:
        return f"{stage.number} {stage.id}: {call.member}" in self.session.record.files

    def stage(self, stage_id: str) -> StageResidency:
        return next(stage for stage in self.residency.stages if stage.stage == stage_id)

    def model_of(self, load: LoadParams) -> str:
        return next(call.model for call, placed in self.placed.items() if placed == load)

    def memory_now(self) -> Bytes:
        """What this run's models may take now: the pool's budget, or less where others have taken memory since."""
        free = self.pool.free_now()
        held = {name: sum(r.bytes.get(name, 0) for r in self.pool.status()) for name in free}
        return {name: min(size, free.get(name, size) + held.get(name, 0)) for name, size in self.pool.budget.items()}


def _hurries(stage: StagePlan) -> bool:
    return stage.may_miss and stage.quorum_wait_s is not None
