"""Ctrl-C ends a run at once, whatever still sleeps before a retry or listens to a silent server."""

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable
from typing import TypeVar

from flows.console import say

T = TypeVar("T")
EXIT_CODE = 130
"""128 and the number of SIGINT, as shells have it."""
SAID = "gguf-flow: interrupted; finished steps are in the session"
GRACE_S = 3.0
"""What threads have to come to their end by themselves, once the run has been cleaned up."""


def run_until_interrupted(run: Awaitable[T]) -> T:
    """`asyncio.run`, but for threads that do not end: Python would wait for them, Prefect's pause before a retry among
    them.
    """

    async def watched() -> T:
        try:
            return await run
        except asyncio.CancelledError:
            last_resort = threading.Timer(GRACE_S, _leave)
            last_resort.daemon = True
            last_resort.start()
            raise

    return asyncio.run(watched())


def _leave() -> None:
    say(SAID)
    atexit._run_exitfuncs()  # a temporary Prefect server goes with us
    os._exit(EXIT_CODE)
