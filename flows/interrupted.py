"""Ctrl-C ends a run, whatever still sleeps before a retry or listens to a silent server."""

import asyncio
import atexit
import os
import signal
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from flows.console import say

T = TypeVar("T")
EXIT_CODE = 130
"""128 and the number of SIGINT, as shells have it."""
SAID = "gguf-flow: interrupted; finished steps are in the session"
GRACE_S = 10.0
"""What a run has, from Ctrl-C on, to come to its end by itself."""


def run_until_interrupted(run: Awaitable[T]) -> T:
    """`asyncio.run`, but for threads that do not end: Prefect would wait for them, and one of them may be Prefect's own
    pause before a retry.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; also where the run then ended by an error, such as that of a Prefect
            server which could not be told of it.
    """
    pressed = threading.Event()

    async def watched() -> T:
        with _limited_end(pressed):
            return await run

    try:
        return asyncio.run(watched())
    except Exception:
        if pressed.is_set():
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _limited_end(pressed: threading.Event) -> Iterator[None]:
    """Before what asyncio does at Ctrl-C, note it and set a timer."""
    of_asyncio = signal.getsignal(signal.SIGINT)

    def interrupted(number: int, frame: FrameType | None) -> None:
        pressed.set()
        last_resort = threading.Timer(GRACE_S, _leave)
        last_resort.daemon = True
        last_resort.start()
        assert callable(of_asyncio)
        of_asyncio(number, frame)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, of_asyncio)


def _leave() -> None:
    say(SAID)
    atexit._run_exitfuncs()  # a temporary Prefect server goes with us
    os._exit(EXIT_CODE)
