"""The members of a stage that are still at it when enough others have answered."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from llm_core.errors import NotWaitedFor
from llm_core.plan import StagePlan
from llm_core.session_records import StepRecord

_LOOK_EVERY_S = 0.05


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

    def wait_for(self, answer: Callable[[Callable[[], None]], StepRecord]) -> StepRecord:
        """What `answer` returns, if it does in time. It is left alone then; the check that it is given ends it.

        Raises:
            NotWaitedFor: it did not.
        """
        made: list[StepRecord | BaseException] = []
        done = threading.Event()

        def work() -> None:
            try:
                made.append(answer(self.check))
            except BaseException as error:
                made.append(error)
            done.set()

        self.check()
        threading.Thread(target=copy_context().run, args=(work,), name="member", daemon=True).start()
        while not done.wait(_LOOK_EVERY_S):
            self.check()
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0]

    def check(self) -> None:
        """Raises `NotWaitedFor` when the others have had their time."""
        if self.is_over:
            raise NotWaitedFor(
                f"not waited for: {self._stage.quorum} answered, and quorum_wait_s "
                f"({self._stage.quorum_wait_s:g}) is over"
            )
