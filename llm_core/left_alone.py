"""Work that blocks where nobody can end it, such as a silent connection, is left alone when it is not wanted."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
_LOOK_EVERY_S = 0.05


def wait_while(wanted: Callable[[], None], work: Callable[[], T]) -> T:
    """What `work` returns or raises, in a daemon thread of its own with this one's context variables.

    Args:
        wanted: looked at meanwhile; what it raises is raised here, and `work` goes on without anybody. So `work`
            should look at it as well, wherever it can.
    """
    made: list[T] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            made.append(work())
        except BaseException as error:
            failed.append(error)
        done.set()

    wanted()
    threading.Thread(target=copy_context().run, args=(run,), name="may be left alone", daemon=True).start()
    while not done.wait(_LOOK_EVERY_S):
        wanted()
    if failed:
        raise failed[0]
    return made[0]
