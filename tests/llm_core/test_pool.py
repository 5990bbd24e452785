"""The pool's promises, with scripted workers: memory is never promised twice, nothing in use is evicted."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import GgufFlowError, InsufficientMemory, ModelCrashed, ModelLoadError, ModelOutOfMemory
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.memory import DeviceNeed, ModelNeed
from llm_core.pool import MAX_PASSES, ModelPool

REQUEST = GenerateRequest((("user", "?"),), SamplingParams())


def load(name: str, gpu: int | None = None, layers: int = 0) -> LoadParams:
    return LoadParams(name, n_ctx=512, n_gpu_layers=layers, gpu=gpu)


class FakeMachine:
    """Counts the memory that scripted workers hold, and notices what must never happen."""

    def __init__(self, sizes: dict[str, int], budget: int) -> None:
        self.sizes, self.budget, self.used = sizes, budget, 0
        self.lock = threading.Lock()
        self.wrongs: list[str] = []
        self.started: list[str] = []
        self.during: Callable[[str], None] = lambda name: None
        self.fail: Callable[[LoadParams], Exception | None] = lambda load: None

    def need(self, load: LoadParams) -> ModelNeed:
        return ModelNeed(DeviceNeed(weights_bytes=self.sizes[load.path]))

    def pool(self, **options: object) -> ModelPool:
        return ModelPool({"RAM": self.budget}, self.need, 4, self.start, **options)  # type: ignore[arg-type]

    def start(self, load: LoadParams, model: str) -> "ScriptedWorker":
        if error := self.fail(load):
            raise error
        with self.lock:
            self.started.append(load.path)
            self.used += self.sizes[load.path]
            if self.used > self.budget:
                self.wrongs.append(f"{self.used} of {self.budget} in use after loading {load.path}")
        return ScriptedWorker(self, load, model)


class ScriptedWorker:
    load_s = 0.5

    def __init__(self, machine: FakeMachine, load: LoadParams, model: str) -> None:
        self.machine, self.load, self.model, self.users, self.alive = machine, load, model, 0, True

    def generate(self, request: GenerateRequest, on_token: object = None) -> GenerateResult:
        with self.machine.lock:
            self.users += 1
        try:
            self.machine.during(self.load.path)
            if not self.alive:
                raise ModelCrashed("killed")
        finally:
            with self.machine.lock:
                self.users -= 1
        return GenerateResult(self.load.path, None, "stop", "", "", 1, 0, 1, (7,), 0, 0, None, 0.0, 0.0, None, 1.0)

    def use_threads(self, threads: int) -> None: ...
    def pause(self) -> None: ...

    def close(self) -> None:
        with self.machine.lock:
            if self.users and self.alive:
                self.machine.wrongs.append(f"{self.load.path} was evicted while in use")
            if self.alive:
                self.machine.used -= self.machine.sizes[self.load.path]
            self.alive = False


@contextmanager
def held(machine: FakeMachine, pool: ModelPool, name: str) -> Iterator[None]:
    """`name` is in mid-generation while the block runs."""
    inside, leave = threading.Event(), threading.Event()
    before = machine.during

    def during(current: str) -> None:
        if current == name and not leave.is_set():
            inside.set()
            leave.wait(10)

    machine.during = during
    thread = threading.Thread(target=lambda: pool.generate(load(name), name, REQUEST))
    thread.start()
    assert inside.wait(10)
    machine.during = before
    try:
        yield
    finally:
        leave.set()
        thread.join()


def test_model_that_is_resident_is_not_loaded_again() -> None:
    machine = FakeMachine({"a": 4}, budget=8)
    pool = machine.pool()
    first, second = pool.generate(load("a"), "a", REQUEST), pool.generate(load("a"), "a", REQUEST)
    assert machine.started == ["a"]
    assert pool.load_count == 1
    assert (first.load_s, second.load_s) == (0.5, 0.0)


def test_least_recently_used_model_makes_room() -> None:
    machine = FakeMachine({"a": 4, "b": 4, "c": 4}, budget=8)
    pool = machine.pool()
    for name in ("a", "b", "a", "c"):
        pool.generate(load(name), name, REQUEST)
    assert {status.model for status in pool.status()} == {"a", "c"}


def test_model_that_is_expected_again_stays_although_it_was_used_less_recently() -> None:
    machine = FakeMachine({"a": 4, "b": 4, "c": 4}, budget=8)
    pool = machine.pool()
    pool.expect(load(name) for name in ("a", "b", "c", "a"))
    for name in ("a", "b", "c", "a"):
        pool.generate(load(name), name, REQUEST)
    assert machine.started == ["a", "b", "c"]


def test_pinned_model_is_not_evicted_and_the_refusal_names_it() -> None:
    machine = FakeMachine({"a": 6, "b": 4}, budget=8)
    pool = machine.pool()
    pool.load(load("a"), "a")
    pool.pin(load("a"))
    with pytest.raises(InsufficientMemory, match="pinned: a"):
        pool.generate(load("b"), "b", REQUEST)
    pool.pin(load("a"), pinned=False)
    assert pool.generate(load("b"), "b", REQUEST).text == "b"


def test_model_larger_than_the_budget_is_refused_and_evicts_nothing() -> None:
    machine = FakeMachine({"a": 4, "huge": 9}, budget=8)
    pool = machine.pool()
    pool.load(load("a"), "a")
    with pytest.raises(InsufficientMemory, match="model 'huge' needs"):
        pool.generate(load("huge"), "huge", REQUEST)
    assert [status.model for status in pool.status()] == ["a"]


def test_request_waits_for_memory_that_is_in_use() -> None:
    machine = FakeMachine({"a": 6, "b": 6}, budget=8)
    pool = machine.pool()
    answers: list[str] = []
    with held(machine, pool, "a"):
        waiting = threading.Thread(target=lambda: answers.append(pool.generate(load("b"), "b", REQUEST).text))
        waiting.start()
        time.sleep(0.05)
        assert answers == []
    waiting.join()
    assert answers == ["b"]
    assert machine.wrongs == []


def test_request_for_a_resident_model_passes_a_waiting_one_but_not_for_ever() -> None:
    machine = FakeMachine({"in use": 3, "resident": 3, "wanted": 6}, budget=8)
    pool = machine.pool()
    pool.load(load("resident"), "resident")
    done: list[str] = []

    def ask(name: str) -> None:
        done.append(pool.generate(load(name), name, REQUEST).text)

    with held(machine, pool, "in use"):
        waiting = threading.Thread(target=ask, args=("wanted",))
        waiting.start()
        while not any(r.load.path == "wanted" for r in pool._queue):
            time.sleep(0.01)
        for _ in range(MAX_PASSES):
            ask("resident")
        late = threading.Thread(target=ask, args=("resident",))
        late.start()
        time.sleep(0.05)
        assert done == ["resident"] * MAX_PASSES, "one more has to queue behind the wanted one"
    waiting.join()
    late.join()
    assert done == ["resident"] * MAX_PASSES + ["wanted", "resident"]


def test_sequential_pool_holds_one_model_at_a_time() -> None:
    machine = FakeMachine({"a": 1, "b": 1}, budget=100)
    pool = machine.pool(keep=False)
    for name in ("a", "a", "b", "a"):
        pool.generate(load(name), name, REQUEST)
        assert machine.used == 1
    assert machine.started == ["a", "b", "a"]


def test_prefetch_uses_free_memory_and_evicts_nothing() -> None:
    machine = FakeMachine({"a": 4, "b": 4, "c": 4}, budget=8)
    pool = machine.pool()
    pool.load(load("a"), "a")
    pool.prefetch(load("b"), "b")
    pool.prefetch(load("c"), "c")
    pool.generate(load("b"), "b", REQUEST)
    assert machine.started == ["a", "b"]


def test_memory_that_another_process_took_counts_as_gone() -> None:
    machine = FakeMachine({"a": 4, "b": 4}, budget=100)
    free = {"RAM": 5}
    pool = machine.pool(free=lambda: {"RAM": free["RAM"] - machine.used})
    pool.generate(load("a"), "a", REQUEST)
    pool.generate(load("b"), "b", REQUEST)
    assert [status.model for status in pool.status()] == ["b"], "a had to go"
    free["RAM"] = 0
    with pytest.raises(InsufficientMemory):
        pool.generate(load("a"), "a", REQUEST)


def test_model_whose_process_died_is_loaded_anew() -> None:
    machine = FakeMachine({"a": 4}, budget=8)
    pool = machine.pool()
    pool.load(load("a"), "a")

    def die(name: str) -> None:
        machine.during = lambda name: None
        (resident,) = pool._residents.values()
        resident.worker.alive = False  # type: ignore[union-attr, misc]
        machine.used -= 4

    machine.during = die
    with pytest.raises(ModelCrashed):
        pool.generate(load("a"), "a", REQUEST)
    assert pool.generate(load("a"), "a", REQUEST).text == "a"
    assert machine.started == ["a", "a"]


def test_failed_load_gives_its_memory_back() -> None:
    machine = FakeMachine({"a": 8, "b": 8}, budget=8)
    machine.fail = lambda load: ModelLoadError("damaged") if load.path == "a" else None
    pool = machine.pool()
    with pytest.raises(ModelLoadError):
        pool.generate(load("a"), "a", REQUEST)
    assert pool.generate(load("b"), "b", REQUEST).text == "b"


def test_out_of_memory_evicts_the_others_and_tries_again() -> None:
    machine = FakeMachine({"a": 1, "b": 1}, budget=8)
    pool = machine.pool()
    pool.load(load("a"), "a")
    machine.fail = lambda load: ModelOutOfMemory("cudaMalloc failed") if machine.used else None
    result = pool.generate(load("b"), "b", REQUEST)
    assert result.text == "b"
    assert result.degraded == ("b: out of memory, tried again with other models evicted (cudaMalloc failed)",)
    assert [status.model for status in pool.status()] == ["b"]


def test_out_of_memory_lowers_gpu_layers_then_goes_to_the_cpu_and_says_so() -> None:
    machine = FakeMachine({"a": 1}, budget=8)
    tried: list[tuple[int | None, int]] = []

    def fail(load: LoadParams) -> Exception | None:
        tried.append((load.gpu, load.n_gpu_layers))
        return ModelOutOfMemory("out of memory") if load.gpu is not None else None

    steps = {33: load("a", 0, 10), 10: load("a")}
    machine.fail = fail
    pool = machine.pool(lower=lambda load: steps[load.n_gpu_layers])
    result = pool.generate(load("a", 0, 33), "a", REQUEST)
    assert tried == [(0, 33), (0, 33), (0, 10), (None, 0)]
    assert result.degraded[-1] == "a: out of memory, runs on the CPU instead of 33 GPU layers"
    pool.generate(load("a", 0, 33), "a", REQUEST)
    assert len(tried) == 4, "what did not fit once is not tried for every answer"


def test_out_of_memory_with_nothing_left_to_try_is_refused() -> None:
    machine = FakeMachine({"a": 1}, budget=8)
    machine.fail = lambda load: ModelOutOfMemory("failed to allocate")
    with pytest.raises(InsufficientMemory, match="failed to allocate; nothing smaller is left to try"):
        machine.pool().generate(load("a"), "a", REQUEST)


def test_idle_model_leaves_after_its_time() -> None:
    machine = FakeMachine({"a": 4}, budget=8)
    pool = machine.pool(idle_ttl_s=0.05)
    pool.generate(load("a"), "a", REQUEST)
    deadline = time.monotonic() + 10
    while pool.status() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.status() == []
    assert machine.used == 0


def test_closed_pool_frees_everything_and_refuses() -> None:
    machine = FakeMachine({"a": 4}, budget=8)
    pool = machine.pool()
    pool.load(load("a"), "a")
    pool.close()
    assert machine.used == 0
    with pytest.raises(GgufFlowError, match="run is ending"):
        pool.generate(load("a"), "a", REQUEST)


def test_unload_spares_a_model_in_use() -> None:
    machine = FakeMachine({"a": 4}, budget=8)
    pool = machine.pool()
    with held(machine, pool, "a"):
        assert not pool.unload(load("a"))
    assert pool.unload(load("a"))
    assert pool.status() == []


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    budget=st.integers(4, 16),
    requests=st.lists(st.integers(0, 4), min_size=1, max_size=16),
    n_threads=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_whatever_is_asked_memory_is_kept_to_and_every_request_ends(
    sizes: list[int], budget: int, requests: list[int], n_threads: int, seed: int
) -> None:
    names = {str(number): size for number, size in enumerate(sizes)}
    machine = FakeMachine(names, budget)
    jitter = random.Random(seed)
    machine.during = lambda name: time.sleep(jitter.random() * 0.0005)
    pool = machine.pool()
    wanted = [str(number % len(sizes)) for number in requests]
    outcomes: list[tuple[str, str]] = []

    def ask(names: list[str]) -> None:
        for name in names:
            try:
                outcomes.append((name, pool.generate(load(name), name, REQUEST).text))
            except InsufficientMemory:
                outcomes.append((name, "refused"))

    threads = [threading.Thread(target=ask, args=(wanted[n::n_threads],), daemon=True) for n in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(outcomes) == len(requests), "a request neither ended nor was refused"
    assert machine.wrongs == []
    for name, outcome in outcomes:
        assert outcome == ("refused" if names[name] > budget else name)
    pool.close()
    assert machine.used == 0


def test_model_that_is_held_is_not_evicted_between_its_requests() -> None:
    machine = FakeMachine({"a": 6, "b": 6}, budget=8)
    pool = machine.pool()
    with pool.hold(load("a")):
        pool.generate(load("a"), "a", REQUEST)
        other = threading.Thread(target=lambda: pool.generate(load("b"), "b", REQUEST))
        other.start()
        while not pool._queue:
            time.sleep(0.001)
        for _ in range(MAX_PASSES * 2):
            pool.generate(load("a"), "a", REQUEST)
        assert machine.started == ["a"]
    other.join(10)
    assert machine.started == ["a", "b"]


def test_whole_pass_over_a_dataset_is_one_expected_use() -> None:
    machine = FakeMachine({"a": 4, "b": 4, "c": 4}, budget=8)
    pool = machine.pool()
    pool.expect(load(name) for name in ("a", "b", "c", "a"))
    for name in ("a", "b", "c", "a"):
        with pool.hold(load(name)):
            for _ in range(3):
                pool.generate(load(name), name, REQUEST)
    assert machine.started == ["a", "b", "c"], "'a' was kept for its second pass"


def test_held_model_whose_process_died_is_loaded_again() -> None:
    machine = FakeMachine({"a": 6}, budget=8)
    pool = machine.pool()
    with pool.hold(load("a")):
        pool.generate(load("a"), "a", REQUEST)
        pool._residents[load("a")].worker.close()  # type: ignore[union-attr]
        pool.generate(load("a"), "a", REQUEST)
    assert machine.started == ["a", "a"]


def test_answers_of_one_model_are_generated_at_the_same_time() -> None:
    machine = FakeMachine({"a": 4}, budget=8)
    pool = machine.pool()
    both = threading.Barrier(2, timeout=10)
    machine.during = lambda name: (both.wait(), None)[1]
    askers = [threading.Thread(target=lambda: pool.generate(load("a"), "a", REQUEST)) for _ in range(2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert machine.started == ["a"]
