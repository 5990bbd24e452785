"""The cores that the rest of the machine leaves to this process.

llama.cpp's threads wait for each other after every operation, so one that shares its core with another process holds up
all of them. Seen on 2 cores with SmolLM2-135M beside one busy process: 34 tokens/s with two threads, and with one 78 as
Q4_1 and 136 as Q4_0 (one sample each).
"""

import math
import time
from collections.abc import Callable

from llm_core.machine import allowed_cpus, cpu_time_s

WINDOW_S = 0.2
"""Shorter than a turn (`QUANTUM_S`); the kernel counts CPU time in hundredths of a second."""


class IdleCores:
    """Measured in windows of `WINDOW_S`, by a process that asks again and again while it is at work.

    Args:
        cpus: that this process may run on.
        used_s: CPU time that all processes together have used on them.
        own_s: CPU time that this process has used.
        now: a clock.
    """

    def __init__(
        self,
        cpus: int | None = None,
        used_s: Callable[[], float] = cpu_time_s,
        own_s: Callable[[], float] = time.process_time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cpus = cpus or allowed_cpus()
        self._used_s, self._own_s, self._now = used_s, own_s, now
        self._left = self._cpus
        self.restart()

    def restart(self) -> None:
        """Begin a new window: what others did while this process stood still, they may have done in its stead."""
        self._since = self._now(), self._used_s() - self._own_s()

    def count(self) -> int:
        """As the last whole window says, at least 1; at first all."""
        since, used_s = self._since
        if self._now() - since >= WINDOW_S:
            self.restart()
            then, now_used_s = self._since
            others = max(0.0, (now_used_s - used_s) / (then - since))
            self._left = max(1, math.floor(self._cpus - others + 0.5))
        return self._left
