"""ModelPool: who is loaded. Admission is decided and committed under one lock, so memory is never promised twice."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf

from llm_core.call_params import LoadParams
from llm_core.core_lease import CoreLease
from llm_core.errors import GgufFlowError, InsufficientMemory, ModelOutOfMemory
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.machine import Bytes, fits, gib, sums
from llm_core.memory import ModelNeed, by_device
from llm_core.residency import choose_victims
from llm_core.resident import Resident, ResidentStatus, StartWorker
from llm_core.worker import OnToken

logger = logging.getLogger(__name__)

MAX_PASSES = 8
"""Requests for resident models that may pass a waiting one before they, too, must queue."""


@dataclass(eq=False)  # two requests for the same model are two
class _Request:
    load: LoadParams
    passed: int = 0


class ModelPool:
    """Loads, keeps, evicts and asks models within a memory budget. All methods may be called from any thread.

    Args:
        budget: bytes by device that models may take in all, these pool's own included.
        need: what a load takes.
        cores: decoding threads in all.
        start: makes a worker.
        free: bytes by device that are free right now, measured; `None` trusts the budget alone.
        keep: `False` unloads every model as soon as another is wanted (sequential execution).
        idle_ttl_s: unload a model that nobody has asked for this long; `None` keeps it.
        on_change: called with the status after every load and unload.
        lower: what to load instead when a device has no memory left after all; by default nothing.
    """

    def __init__(
        self,
        budget: Bytes,
        need: Callable[[LoadParams], ModelNeed],
        cores: int,
        start: StartWorker,
        *,
        free: Callable[[], Bytes] | None = None,
        keep: bool = True,
        idle_ttl_s: float | None = None,
        on_change: Callable[[list[ResidentStatus]], None] | None = None,
        lower: Callable[[LoadParams], LoadParams | None] = lambda load: None,
    ) -> None:
        self.load_count = 0
        """Models loaded since the pool was made."""
        self.budget = budget
        self._need, self._start, self._free, self._lower = need, start, free, lower
        self._keep, self._idle_ttl_s, self._on_change = keep, idle_ttl_s, on_change
        self._cores = CoreLease(cores)
        self._residents: dict[LoadParams, Resident] = {}
        self._queue: list[_Request] = []
        self._expected: list[LoadParams] = []
        self._held: Counter[LoadParams] = Counter()
        self._instead: dict[LoadParams, LoadParams] = {}
        self._changed = threading.Condition()
        self._closed = False

    def generate(
        self, load: LoadParams, model: str, request: GenerateRequest, on_token: OnToken | None = None
    ) -> GenerateResult:
        """Answer with the model loaded as `load` says; blocks while it must wait for memory or cores.

        Where memory runs out although it was promised, the pool makes room and tries again, then with fewer GPU layers,
        then on the CPU; the result's `degraded` says so. `load_s` is told with the first answer after a load, then 0.0.

        Raises:
            InsufficientMemory: it cannot fit, whatever is evicted.
            ModelLoadError, ModelCrashed, ContextOverflow, GenerationTimeout: as the worker.
        """
        notes: list[str] = []
        while True:
            attempt = self._instead.get(load, load)
            try:
                result = self._answer(attempt, model, request, on_token)
                return replace(result, degraded=(*notes, *self._lowered_note(load, model)))
            except ModelOutOfMemory as error:
                self._make_room(attempt)
                if not notes:
                    notes.append(f"{model}: out of memory, tried again with other models evicted ({error})")
                else:
                    self._lower_or_refuse(load, model, error)
                logger.warning("%s", notes[-1])

    def load(self, load: LoadParams, model: str) -> None:
        """Load a model before it is asked for. Raises as `generate`."""
        with self._resident(load, model):
            pass

    @contextmanager
    def hold(self, load: LoadParams) -> Iterator[None]:
        """Whoever asks a model many things in a row keeps it: from its first use it is not evicted for others."""
        with self._changed:
            self._consume(load)
            self._held[load] += 1
        try:
            yield
        finally:
            with self._changed:
                self._held[load] -= 1
                self._changed.notify_all()

    def prefetch(self, load: LoadParams, model: str) -> None:
        """Begin to load in the background, if there is room now without evicting or waiting; else do nothing."""

        def fetch() -> None:
            with suppress(GgufFlowError):  # whoever needs the model meets the error himself
                self._load(resident)
            with self._changed:
                resident.users -= 1
                self._changed.notify_all()

        with self._changed:
            known = load in self._residents or self._queue or self._closed or not self._keep
            if known or self._shortage(load, by_device(self._need(load))):
                return
            resident = self._commit(load, model)
        threading.Thread(target=fetch, name=f"prefetch-{model}", daemon=True).start()

    def unload(self, load: LoadParams) -> bool:
        """Unload a model that is not in use; `False` when it is in use or not resident."""
        with self._changed:
            resident = self._residents.get(load)
            if resident is None or not self._is_idle(resident):
                return False
            resident.leaving = True
        self._remove([resident])
        return True

    def pin(self, load: LoadParams, pinned: bool = True) -> None:
        """Keep a resident model from being evicted, or let it go again."""
        with self._changed:
            if load in self._residents:
                self._residents[load].pinned = pinned
            self._changed.notify_all()

    def expect(self, loads: Iterable[LoadParams]) -> None:
        """What will be asked for, in order: eviction then takes the model that is needed last."""
        with self._changed:
            self._expected += loads

    def status(self) -> list[ResidentStatus]:
        now = time.monotonic()
        with self._changed:
            return [
                ResidentStatus(
                    r.model, r.load, r.state, r.bytes, r.users, r.pinned, None if r.users else now - r.last_used
                )
                for r in self._residents.values()
            ]

    def free_now(self) -> Bytes:
        """Bytes by device that are measured to be free for models; empty where nothing is measured."""
        return self._free() if self._free else {}

    def close(self) -> None:
        """Unload everything and refuse further calls; a generation under way ends with `ModelCrashed`."""
        with self._changed:
            self._closed = True
            residents = list(self._residents.values())
            self._changed.notify_all()
        for resident in residents:
            resident.leaving = True
        self._remove(residents)

    def _answer(
        self, load: LoadParams, model: str, request: GenerateRequest, on_token: OnToken | None
    ) -> GenerateResult:
        with self._resident(load, model) as resident:
            worker = resident.worker
            assert worker
            worker.model = model
            with self._cores.take(worker, request.threads, request.most_threads) as threads:
                result = worker.generate(replace(request, threads=threads), on_token)
            with self._changed:
                first, resident.answered = not resident.answered, True
            return replace(result, load_s=worker.load_s if first else 0.0)

    @contextmanager
    def _resident(self, load: LoadParams, model: str) -> Iterator[Resident]:
        """A loaded model that is not evicted while the block runs."""
        resident, ours = self._admit(load, model)
        try:
            if ours:
                self._load(resident)
            else:
                self._wait_until_loaded(resident)
            yield resident
        finally:
            with self._changed:
                resident.users -= 1
                resident.last_used = time.monotonic()
                self._changed.notify_all()
            self._later_reap()

    def _admit(self, load: LoadParams, model: str) -> tuple[Resident, bool]:
        """Take part in a resident model, or commit the memory for a new one. Waits its turn."""
        need = by_device(self._need(load))
        request = _Request(load)
        with self._changed:
            self._queue.append(request)
        try:
            while True:
                with self._changed:
                    self._check_open()
                    victims = self._bury_dead()
                    resident = self._residents.get(load) or self._wider(load)
                    if resident and resident.usable and self._may_join(request):
                        return self._join(resident), False
                    if not victims and resident is None and self._queue[0] is request:
                        shortage = self._shortage(load, need)
                        if not shortage:
                            self._consume(load)
                            return self._commit(load, model), True
                        victims = self._victims(load, model, need, shortage)
                    if not victims:
                        self._changed.wait(timeout=1.0)  # memory of other processes changes without notice
                        continue
                self._remove(victims)
        finally:
            with self._changed:
                self._queue.remove(request)
                self._changed.notify_all()

    def _wider(self, load: LoadParams) -> Resident | None:
        """A resident that differs only in that it can decode more answers at once."""
        return next(
            (r for r in self._residents.values() if r.load.sequences > load.sequences and r.load.is_like(load)), None
        )

    def _may_join(self, request: _Request) -> bool:
        """Pass ahead of those who wait for memory, unless the first of them has been passed too often."""
        if self._is_held(request.load):
            return True
        ahead = self._queue[: self._queue.index(request)]
        if any(waiting.passed >= MAX_PASSES for waiting in ahead):
            return False
        for waiting in ahead:
            waiting.passed += 1
        return True

    def _join(self, resident: Resident) -> Resident:
        resident.users += 1
        self._consume(resident.load)
        return resident

    def _commit(self, load: LoadParams, model: str) -> Resident:
        resident = Resident(load, model, by_device(self._need(load)), users=1)
        self._residents[load] = resident
        return resident

    def _consume(self, load: LoadParams) -> None:
        if not self._is_held(load):  # a whole pass is one use, counted when it begins
            with suppress(ValueError):
                self._expected.remove(load)

    def _shortage(self, load: LoadParams, need: Bytes) -> dict[str, int]:
        """Bytes by device that must be freed before `load` fits: by the budget, and by what is measured to be free."""
        committed = sums(resident.bytes for resident in self._residents.values())
        missing = {name: committed.get(name, 0) + size - self.budget.get(name, 0) for name, size in need.items()}
        for name, free in self.free_now().items():
            if name in need:
                missing[name] = max(missing[name], need[name] - free)
        if not self._keep and self._residents:
            return {name: max(1, size) for name, size in missing.items()}
        return {name: size for name, size in missing.items() if size > 0}

    def _victims(self, load: LoadParams, model: str, need: Bytes, shortage: Bytes) -> list[Resident]:
        """Idle models to evict for `load`; none means wait.

        Raises:
            InsufficientMemory: it cannot fit, or only pinned models are left and it does not.
        """
        if not fits([need], self.budget):
            raise InsufficientMemory(self._refusal(model, need))
        idle = {other: r for other, r in self._residents.items() if self._is_idle(r)}
        if not self._keep:
            chosen: list[LoadParams] | None = list(idle)
        else:
            sizes = {other: r.bytes for other, r in idle.items()}
            chosen = choose_victims(sizes, shortage, self._next_use, lambda other: idle[other].last_used)
        if chosen is None and len(idle) == len(self._residents):
            chosen = list(idle)  # measured memory may come free only when all are gone
        if not chosen and all(r.pinned for r in self._residents.values()):
            raise InsufficientMemory(self._refusal(model, need))
        for other in chosen or []:
            idle[other].leaving = True
        return [idle[other] for other in chosen or []]

    def _refusal(self, model: str, need: Bytes) -> str:
        now = self.free_now()
        allowed = {name: min(self.budget.get(name, 0), now.get(name, self.budget.get(name, 0))) for name in need}
        what = ", ".join(f"{gib(size)} of {name} ({gib(allowed[name])} available)" for name, size in need.items())
        pinned = [r.model for r in self._residents.values() if r.pinned]
        also = f"; pinned: {', '.join(pinned)}" if pinned else ""
        return f"model '{model}' needs {what}{also}; lower n_ctx, free memory, or take a smaller quantization"

    def _is_idle(self, resident: Resident) -> bool:
        kept = resident.pinned or self._is_held(resident.load)
        return resident.users == 0 and not kept and not resident.leaving

    def _is_held(self, load: LoadParams) -> bool:
        return any(self._instead.get(held, held).is_like(load) for held, n in self._held.items() if n)

    def _next_use(self, load: LoadParams) -> float:
        return float(self._expected.index(load)) if load in self._expected else inf

    def _bury_dead(self) -> list[Resident]:
        """Residents whose process has died, to be removed once nobody is using them any more."""
        dead = [
            r for r in self._residents.values() if r.worker and not r.worker.alive and not r.users and not r.leaving
        ]
        for resident in dead:
            resident.leaving = True
        return dead

    def _load(self, resident: Resident) -> None:
        """Start the worker of a committed resident, outside the lock."""
        try:
            worker = self._start(resident.load, resident.model)
        except BaseException as error:
            with self._changed:
                resident.error = error
                self._residents.pop(resident.load, None)
                self._changed.notify_all()
            raise
        with self._changed:
            resident.worker = worker
            self.load_count += 1
            closed = self._closed
            self._changed.notify_all()
        if closed:
            worker.close()
            self._check_open()
        self._tell()

    def _wait_until_loaded(self, resident: Resident) -> None:
        with self._changed:
            self._changed.wait_for(lambda: resident.worker or resident.error)
        if resident.error:
            raise resident.error

    def _remove(self, residents: list[Resident]) -> None:
        """Close the workers of residents that are marked as leaving; only then is their memory free."""
        for resident in residents:
            if resident.worker:
                resident.worker.close()
        with self._changed:
            for resident in residents:
                if self._residents.get(resident.load) is resident:
                    del self._residents[resident.load]
            self._changed.notify_all()
        self._tell()

    def _make_room(self, load: LoadParams) -> None:
        """Evict every idle model, the failed one too, even if it is held."""
        with self._changed:
            failed = self._residents.get(load)
            idle = [r for r in self._residents.values() if self._is_idle(r)]
            if failed and not failed.users and not failed.leaving and failed not in idle:
                idle.append(failed)
            for resident in idle:
                resident.leaving = True
        self._remove(idle)

    def _lower_or_refuse(self, load: LoadParams, model: str, error: ModelOutOfMemory) -> None:
        lowered = self._lower(self._instead.get(load, load))
        if lowered is None:
            raise InsufficientMemory(f"{error}; nothing smaller is left to try: lower n_ctx or free memory") from error
        self._instead[load] = lowered

    def _lowered_note(self, load: LoadParams, model: str) -> tuple[str, ...]:
        lowered = self._instead.get(load)
        if lowered is None:
            return ()
        where = f"{lowered.n_gpu_layers} layers on GPU {lowered.gpu}" if lowered.gpu is not None else "the CPU"
        return (f"{model}: out of memory, runs on {where} instead of {load.n_gpu_layers} GPU layers",)

    def _later_reap(self) -> None:
        if self._idle_ttl_s is not None and not self._closed:
            timer = threading.Timer(self._idle_ttl_s, self._reap)
            timer.daemon = True
            timer.start()

    def _reap(self) -> None:
        now = time.monotonic()
        with self._changed:
            old = [r for r in self._residents.values() if self._is_idle(r) and now - r.last_used >= self._idle_ttl_s]  # type: ignore[operator]
            for resident in old:
                resident.leaving = True
        self._remove(old)

    def _check_open(self) -> None:
        if self._closed:
            raise GgufFlowError("the run is ending; no model is loaded any more")

    def _tell(self) -> None:
        if self._on_change:
            self._on_change(self.status())
