"""One step of a dataset run: every item through one model, many at once."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from llm_core.call_params import LoadParams
from llm_core.dataset import Item
from llm_core.errors import (
    ConstraintError,
    ContextOverflow,
    GenerationTimeout,
    GgufFlowError,
    InputError,
    ModelCrashed,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from llm_core.plan import Call, StagePlan
from llm_core.providers.faults import wait_s
from llm_core.providers.registry import max_concurrency
from llm_core.session_records import StepRecord
from llm_core.step_log import ItemStep
from tasks.dataset_run import DatasetRun
from tasks.record import artifact_key
from tasks.run import progress

SHOW_EVERY_S = 1.0
"""Between two updates of a progress artifact, which cost some 10 ms each."""
MAX_CRASHES_IN_A_ROW = 3
"""Items that crash their model alone, one after the other, before the model itself is held to be at fault."""
MAX_FAULTS_IN_A_ROW = 3
"""Items that a remote model fails, one after the other, before it is held to be at fault and the run ends."""
_OF_THE_ITEM = (ConstraintError, ContextOverflow, GenerationTimeout, InputError, RequestRefused)


@dataclass(frozen=True)
class StepSummary:
    """What a step did in this run; items that were there before are not in `n_tokens` and `wall_s`."""

    step: str
    n_items: int
    n_failed: int
    n_before: int
    n_tokens: int
    wall_s: float


Answer = Callable[[Item, bool], StepRecord | None]
"""What a step makes of an item, and whether it is not tried again; `None` where an earlier step failed it."""


class Pass:
    """One step's way through all items.

    Every record is saved as it comes. An item whose model process dies is tried again, alone, when the others are
    done, so that it takes none of them with it; what it fails with is its record then.

    Args:
        call: whose model answers; `None` where no model is asked.
        retries: of an item whose model process died.
        items: those that the step is for; nothing is asked about the others.
    """

    def __init__(
        self,
        run: DatasetRun,
        stage: StagePlan,
        step: str,
        call: Call | None,
        answer: Answer,
        retries: int,
        items: list[Item],
    ) -> None:
        self._run, self._stage, self._step, self._answer, self._retries = run, stage, step, answer, retries
        self._load = run.placed.get(call) if call else None
        self._n_askers = _askers(call, self._load)
        self._ended = threading.Event()
        self._log, self._items = run.logs[step], items
        self._todo = [item for item in items if item.number not in self._log]
        self._n_before = len(items) - len(self._todo)
        self._n_done, self._n_failed, self._n_tokens = self._n_before, 0, 0

    def work(self) -> StepSummary:
        """Go through the items; raises what is not the fault of a single item."""
        started = time.perf_counter()
        watcher = progress.get()
        watcher.begin_items(self._step, len(self._items), self._n_before)
        todo = {item.number for item in self._todo}
        for item in self._run.items:
            if item.number not in todo:
                self._run.results.settle(item)
        artifact = self._progress_artifact()
        shown = 0.0
        for n_tokens, failed in self._outcomes():
            self._n_done += 1
            self._n_tokens += n_tokens
            self._n_failed += failed
            watcher.item(self._step, n_tokens, failed)
            if time.perf_counter() - shown > SHOW_EVERY_S:
                shown = time.perf_counter()
                update_progress_artifact(artifact, progress=100 * self._n_done / len(self._items))
        update_progress_artifact(artifact, progress=100.0)
        watcher.end_items(self._step)
        wall_s = time.perf_counter() - started
        n_failed = self._log.n_failed
        return StepSummary(self._step, len(self._log), n_failed, self._n_before, self._n_tokens, wall_s)

    def _progress_artifact(self) -> UUID:
        key = artifact_key(self._run.plan.pipeline, *self._step.split(": "), "progress")
        artifact = create_progress_artifact(progress=0.0, key=key, description=self._step)
        assert isinstance(artifact, UUID)
        return artifact

    def _outcomes(self) -> Iterable[tuple[int, bool]]:
        """(completion tokens, failed) of each item as it ends."""
        again: list[Item] = []
        faults: list[tuple[Item, GgufFlowError]] = []
        held = self._run.pool.hold(self._load) if self._load and self._todo else nullcontext()
        with held, closing(self._side_by_side()) as outcomes:
            for item, outcome in outcomes:
                if isinstance(outcome, ModelCrashed):
                    again.append(item)
                elif isinstance(outcome, ProviderError) and not isinstance(outcome, RequestRefused):
                    faults.append((item, outcome))
                    if len(faults) == MAX_FAULTS_IN_A_ROW:
                        raise outcome  # those items are not saved: `resume` asks for them again
                else:
                    yield from (self._save(*fault) for fault in faults)
                    faults.clear()
                    yield self._save(item, outcome)
            yield from (self._save(*fault) for fault in faults)
            yield from self._one_by_one(again)

    def _side_by_side(self) -> Generator[tuple[Item, StepRecord | GgufFlowError | None]]:
        """Items and what came of them, as they end. What is under way when nobody listens any more is saved."""
        n_askers = min(len(self._todo), self._n_askers)
        outcomes: queue.SimpleQueue[tuple[Item | None, StepRecord | BaseException | None]] = queue.SimpleQueue()
        waiting, lock, stop = iter(self._todo), threading.Lock(), self._ended

        def ask_on() -> None:
            while not stop.is_set():
                with lock:
                    item = next(waiting, None)
                if item is None:
                    return
                try:
                    outcomes.put((item, self._attempt(item)))
                except BaseException as error:
                    outcomes.put((None, error))
                    return

        with ThreadPoolExecutor(max(1, n_askers), thread_name_prefix=self._step) as askers:
            for _ in range(n_askers):
                askers.submit(ask_on)
            try:
                for _ in self._todo:
                    item, outcome = outcomes.get()
                    if item is None:
                        assert isinstance(outcome, BaseException)
                        raise outcome
                    yield item, outcome  # type: ignore[misc]
            finally:
                stop.set()
                askers.shutdown()
                while not outcomes.empty():
                    item, outcome = outcomes.get()
                    if item and isinstance(outcome, StepRecord):
                        self._save(item, outcome)

    def _attempt(self, item: Item, is_last: bool = False) -> StepRecord | GgufFlowError | None:
        """One try, or several of a remote model that is busy."""
        for attempt in range(1, self._retries + 2):
            try:
                return self._answer(item, is_last or attempt > self._retries)
            except ProviderUnavailable as error:
                if attempt > self._retries or self._ended.wait(wait_s(error, attempt)):
                    return error
            except (*_OF_THE_ITEM, ModelCrashed, ProviderError) as error:
                return error
        raise AssertionError("the last attempt neither answered nor failed")

    def _one_by_one(self, items: list[Item]) -> Iterable[tuple[int, bool]]:
        in_a_row = 0
        for item in items:
            outcome: StepRecord | GgufFlowError | None = None
            n_tries = max(1, self._retries)  # once at least: another item may have taken it along
            for n in range(n_tries):
                outcome = self._attempt(item, is_last=n + 1 == n_tries)
                if not isinstance(outcome, ModelCrashed):
                    break
            in_a_row = in_a_row + 1 if isinstance(outcome, ModelCrashed) else 0
            if in_a_row == MAX_CRASHES_IN_A_ROW:
                raise ModelCrashed(f"{MAX_CRASHES_IN_A_ROW} items in a row, each asked alone: {outcome}")
            yield self._save(item, outcome)

    def _save(self, item: Item, outcome: StepRecord | GgufFlowError | None) -> tuple[int, bool]:
        n_tokens, failed = 0, isinstance(outcome, GgufFlowError)
        if isinstance(outcome, StepRecord):
            n_tokens = 0 if outcome.reused_from else outcome.completion_tokens or 0
            lines = self._log.add(ItemStep(item=item.number, **outcome.model_dump()))
            if outcome.cache_key:
                self._run.answers.keep(outcome.cache_key, self._log.path, lines)
        elif isinstance(outcome, GgufFlowError):
            self._log.add(self._error_record(item, outcome))
        self._run.results.settle(item)
        return n_tokens, failed

    def _error_record(self, item: Item, error: GgufFlowError) -> ItemStep:
        now = datetime.now(UTC)
        return ItemStep(
            item=item.number,
            error=str(error),
            id=f"{self._stage.number} {self._step}",
            number=self._stage.number,
            stage=self._stage.id,
            text="",
            started=now,
            ended=now,
        )


def _askers(call: Call | None, load: LoadParams | None) -> int:
    """How many items are under way at a time: a few more than the model has sequences."""
    if load:
        return load.sequences + max(1, load.sequences // 4)
    return max_concurrency(call.remote) if call and call.remote else 1
