"""Decoding threads as a budget: what decodes at one time never has more threads than there are cores."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class CoreLease:
    """Hands out cores first come, first served, so that a wide request is not passed for ever by narrow ones."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, threads: int) -> Iterator[int]:
        """Hold `threads` cores, at most all; yields how many."""
        threads = max(1, min(threads, self.cores))
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= threads)
            self._waiting.popleft()
            self._free -= threads
            self._changed.notify_all()
        try:
            yield threads
        finally:
            with self._changed:
                self._free += threads
                self._changed.notify_all()
