"""Decoding threads as a budget: what decodes at one time never has more threads than there are cores.

Where more models are at work than there are cores, they take turns of `QUANTUM_S`; one that is alone at last grows into
the cores that the others have left. All answers of one model share its cores.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

QUANTUM_S = 0.25
"""A turn. Pausing costs up to a decode step, so turns are much longer than steps of small models (about 0.01 s)."""


class Decoder(Protocol):
    """Whatever decodes with a number of threads that can change."""

    def use_threads(self, threads: int) -> None: ...
    def pause(self) -> None:
        """Stop before the next step; returns when it has stopped."""


@dataclass(eq=False)
class _Turn:
    decoder: Decoder
    base: int
    most: int
    threads: int = 0
    """Held now; 0 while it waits."""
    since: float = 0.0
    started: bool = False
    holders: int = 0
    """Answers of this decoder under way; they share what it holds."""


class CoreLease:
    """Hands out cores first come, first served."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        self._waiting: deque[_Turn] = deque()
        self._running: list[_Turn] = []
        self._changed = threading.Condition()
        self._timer: threading.Timer | None = None

    @contextmanager
    def take(self, decoder: Decoder, threads: int, most: int = 0) -> Iterator[int]:
        """Hold `threads` cores, at most all, for as long as the block runs; yields how many.

        `decoder` is told its threads. Meanwhile it may be paused for others and told to go on, and grow to `most` while
        nobody waits. Whoever comes with the same decoder meanwhile shares what it holds.
        """
        with self._changed:
            turn = self._turn_of(decoder)
            if turn is None:
                turn = _Turn(decoder, max(1, min(threads, self.cores)), min(most, self.cores))
                self._waiting.append(turn)
                self._dispatch()
            turn.holders += 1
            self._changed.wait_for(lambda: turn.started)
        try:
            yield turn.base
        finally:
            with self._changed:
                turn.holders -= 1
                if not turn.holders:
                    self._give_back(turn)

    def _turn_of(self, decoder: Decoder) -> _Turn | None:
        return next((turn for turn in (*self._running, *self._waiting) if turn.decoder is decoder), None)

    def _give_back(self, turn: _Turn) -> None:
        if turn in self._running:
            self._running.remove(turn)
            self._free += turn.threads
        else:
            self._waiting.remove(turn)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give free cores to who waits first; with nobody waiting, to who is at work."""
        while self._waiting and self._free >= self._waiting[0].base:
            turn = self._waiting.popleft()
            turn.threads, turn.since = turn.base, time.monotonic()
            self._free -= turn.threads
            self._running.append(turn)
            turn.decoder.use_threads(turn.threads)
            turn.started = True
        self._changed.notify_all()
        if self._waiting:
            self._arm()
            return
        for turn in self._running:
            more = min(self._free, turn.most - turn.threads)
            if more > 0:
                turn.threads += more
                self._free -= more
                turn.decoder.use_threads(turn.threads)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(QUANTUM_S, self._rotate)
            self._timer.daemon = True
            self._timer.start()

    def _rotate(self) -> None:
        """Pause who has had its turn for longest, until there are cores for who waits first."""
        with self._changed:
            needed = self._waiting[0].base - self._free if self._waiting else 0
            paused: list[_Turn] = []
            for turn in sorted(self._running, key=lambda turn: turn.since):
                if needed > 0 and time.monotonic() - turn.since >= QUANTUM_S:
                    paused.append(turn)
                    needed -= turn.threads
        for turn in paused:
            turn.decoder.pause()
        with self._changed:
            for turn in paused:
                if turn in self._running:  # not finished meanwhile
                    self._running.remove(turn)
                    self._free += turn.threads
                    turn.threads = 0
                    self._waiting.append(turn)
                elif (successor := self._turn_of(turn.decoder)) and successor.threads:  # it has begun anew meanwhile
                    turn.decoder.use_threads(successor.threads)
            self._timer = None
            self._dispatch()
