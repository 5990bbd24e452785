"""Cores are a budget, and who waits gets a turn."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from llm_core.core_lease import QUANTUM_S, CoreLease


class FakeDecoder:
    """Works off a number of steps with the threads it is allowed, and counts what all of them use at once."""

    lock = threading.Lock()
    in_use = 0
    most = 0

    def __init__(self) -> None:
        self.threads = 0
        self.told: list[int] = []
        self.done = False

    def use_threads(self, threads: int) -> None:
        self.told.append(threads)
        self._set(threads)

    def pause(self) -> None:
        self.told.append(0)
        self._set(0)

    def _set(self, threads: int) -> None:
        with FakeDecoder.lock:
            threads = 0 if self.done else threads
            FakeDecoder.in_use += threads - self.threads
            FakeDecoder.most = max(FakeDecoder.most, FakeDecoder.in_use)
            self.threads = threads

    def work(self, lease: CoreLease, threads: int, most: int, until: Callable[[], bool]) -> None:
        with lease.take(self, threads, most):
            while not until():
                time.sleep(0.001)
            self.done = True
            self._set(0)


def run(*workers: threading.Thread) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def test_cores_are_never_lent_twice() -> None:
    FakeDecoder.in_use = FakeDecoder.most = 0
    lease = CoreLease(4)
    numbers = [random.Random(n).randint(1, 9) for n in range(40)]
    ends = [time.monotonic() + 0.02 * n for n in range(40)]
    run(
        *(
            threading.Thread(target=FakeDecoder().work, args=(lease, n, 4, lambda end=end: time.monotonic() > end))
            for n, end in zip(numbers, ends, strict=True)
        )
    )
    assert FakeDecoder.most == 4
    with lease.take(FakeDecoder(), 4) as given:
        assert given == 4, "all came back"


def test_answers_take_turns_where_there_are_more_than_cores() -> None:
    lease = CoreLease(1)
    decoders = [FakeDecoder() for _ in range(3)]
    end = time.monotonic() + QUANTUM_S * 8

    def worked(decoder: FakeDecoder) -> bool:
        return time.monotonic() > end

    run(*(threading.Thread(target=d.work, args=(lease, 1, 1, lambda d=d: worked(d))) for d in decoders))
    assert all(0 in decoder.told for decoder in decoders), "each was paused for another"
    assert all(1 in decoder.told for decoder in decoders), "and went on"


def test_last_at_work_grows_into_the_cores_that_others_have_left() -> None:
    lease, last = CoreLease(4), FakeDecoder()
    with ExitStack() as others:
        others.enter_context(lease.take(FakeDecoder(), 2))
        with lease.take(last, 2, most=3):
            assert last.told == [2]
            others.close()
            assert last.told == [2, 3]


def test_answers_of_one_model_share_its_cores_until_the_last_has_gone() -> None:
    lease, model, other = CoreLease(2), FakeDecoder(), FakeDecoder()
    with ExitStack() as first:
        first.enter_context(lease.take(model, 2))
        with lease.take(model, 2):
            assert model.told == [2], "told once"
            first.close()
            late = threading.Thread(target=other.work, args=(lease, 2, 2, lambda: True))
            late.start()
            late.join(QUANTUM_S / 2)
            assert other.told == [], "the second answer still holds them"
        late.join()
    assert other.told == [2]


def test_model_that_begins_anew_while_it_is_being_paused_goes_on() -> None:
    lease, other = CoreLease(1), FakeDecoder()
    with ExitStack() as first, ExitStack() as second:

        class Ending(FakeDecoder):
            """Its answer ends, and another begins, just while it is paused."""

            def pause(self) -> None:
                super().pause()
                if self.told.count(0) == 1:
                    first.close()
                    second.enter_context(lease.take(self, 1))

        model = Ending()
        first.enter_context(lease.take(model, 1))
        waiting = threading.Thread(target=other.work, args=(lease, 1, 1, lambda: True))
        waiting.start()
        waiting.join()
        deadline = time.monotonic() + 5
        while model.threads == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert model.threads == 1


def test_nobody_is_paused_while_there_are_cores_for_all() -> None:
    lease, decoders = CoreLease(2), [FakeDecoder(), FakeDecoder()]
    end = time.monotonic() + QUANTUM_S * 3
    run(*(threading.Thread(target=d.work, args=(lease, 1, 1, lambda: time.monotonic() > end)) for d in decoders))
    assert [decoder.told for decoder in decoders] == [[1], [1]]
