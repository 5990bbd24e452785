"""The members of a stage that are still at it when enough others have answered."""

import threading
import time

from llm_core.errors import NotWaitedFor
from llm_core.plan import StagePlan


class Quorum:
    """Counts a stage's answers; once there are enough, the others have `quorum_wait_s` left.

    Args:
        n_before: answers that an earlier try of the same run has left.
    """

    def __init__(self, stage: StagePlan, n_before: int = 0) -> None:
        self._stage, self._n_answered = stage, 0
        self._lock = threading.Lock()
        self._end: float | None = None
        for _ in range(n_before):
            self.answered()

    def answered(self) -> None:
        """One more member has."""
        assert self._stage.quorum_wait_s is not None
        with self._lock:
            self._n_answered += 1
            if self._n_answered == self._stage.quorum:
                self._end = time.monotonic() + self._stage.quorum_wait_s

    @property
    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def check(self) -> None:
        """Raises `NotWaitedFor` when the others have had their time."""
        if self.is_over:
            raise NotWaitedFor(
                f"not waited for: {self._stage.quorum} answered, and quorum_wait_s "
                f"({self._stage.quorum_wait_s:g}) is over"
            )
