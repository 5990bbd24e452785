"""What other processes leave is measured; the clocks are stood in for, but for one real busy process."""

import time
from dataclasses import dataclass

import pytest

from llm_core.idle_cores import WINDOW_S, IdleCores
from llm_core.machine import allowed_cpus
from tests.busy_process import busy_process


@dataclass
class Clocks:
    """A machine of 4 CPUs, in whole seconds."""

    now_s: float = 0.0
    used_s: float = 1000.0
    own_s: float = 50.0

    def idle_cores(self) -> IdleCores:
        return IdleCores(4, lambda: self.used_s, lambda: self.own_s, lambda: self.now_s)

    def second(self, own: float, others: float) -> None:
        """A second in which this process and the others keep so many cores busy."""
        self.now_s += 1
        self.own_s += own
        self.used_s += own + others


@pytest.mark.parametrize(
    ("own", "others", "left"),
    [(0, 0, 4), (4, 0, 4), (2, 1, 3), (2, 2, 2), (1, 3.4, 1), (2, 0.4, 4), (2, 0.6, 3), (0, 4, 1)],
)
def test_cores_that_others_keep_busy_are_not_idle(own: float, others: float, left: int) -> None:
    clocks = Clocks()
    cores = clocks.idle_cores()
    clocks.second(own, others)
    assert cores.count() == left


def test_every_window_counts_anew() -> None:
    clocks = Clocks()
    cores = clocks.idle_cores()
    counts = []
    for others in (0, 2, 2, 0):
        clocks.second(1, others)
        counts.append(cores.count())
    assert counts == [4, 2, 2, 4]


def test_part_of_a_window_says_nothing_yet() -> None:
    clocks = Clocks()
    cores = clocks.idle_cores()
    clocks.now_s, clocks.used_s = WINDOW_S / 2, clocks.used_s + 4 * WINDOW_S / 2
    assert cores.count() == 4
    clocks.now_s, clocks.used_s = WINDOW_S, clocks.used_s + 4 * WINDOW_S / 2
    assert cores.count() == 1


def test_what_others_did_before_a_restart_does_not_count() -> None:
    clocks = Clocks()
    cores = clocks.idle_cores()
    clocks.second(0, 4)
    cores.restart()
    assert cores.count() == 4
    clocks.second(2, 1)
    assert cores.count() == 3


def test_all_are_idle_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def cpu_times(percpu: bool) -> None:
        raise PermissionError("/proc/stat")

    monkeypatch.setattr("psutil.cpu_times", cpu_times)
    cores = IdleCores()
    time.sleep(WINDOW_S)
    assert cores.count() == allowed_cpus()


def test_a_real_busy_process_takes_a_core() -> None:
    with busy_process():
        cores = IdleCores()
        deadline = time.monotonic() + 30
        while (left := cores.count()) == allowed_cpus() and time.monotonic() < deadline:
            time.sleep(WINDOW_S)
    assert left < allowed_cpus() or allowed_cpus() == 1
