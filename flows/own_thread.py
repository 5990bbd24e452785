"""What blocks for as long as it likes, off the event loop and out of everybody's way."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


@asynccontextmanager
async def held_in_own_thread(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter, hold and leave a blocking context manager in one thread; who stops waiting for it leaves nothing held.

    asyncio's own threads are few: runs that wait for the machine would take them all, and the run that has the machine
    would get none. And it waits for them at the end, so that Ctrl-C would have to wait, too.
    """
    entered: Future[T] = Future()
    left: Future[None] = Future()
    leave = threading.Event()

    def hold() -> None:
        try:
            with manager as value:
                entered.set_result(value)  # raises where nobody waits any more
                leave.wait()
        except BaseException as error:
            (left if entered.done() else entered).set_exception(error)
        else:
            left.set_result(None)

    threading.Thread(target=copy_context().run, args=(hold,), name="holder", daemon=True).start()
    try:
        yield await asyncio.wrap_future(entered)
    finally:
        leave.set()
        if not (entered.cancelled() or entered.exception()):
            await asyncio.wrap_future(left)
