"""Prefect's own messages about a server that has gone, without their tracebacks."""

import asyncio
import logging

_OBSERVERS = ("prefect.FlowRunCancellingObserver", "prefect.FlowRunSuspendingObserver")
"""They lose their connection, say so, and go on by asking every few seconds."""


def without_tracebacks() -> None:
    """One line each is enough in the terminal of `serve`, which says itself what has died."""
    for name in _OBSERVERS:
        logging.getLogger(name).addFilter(_drop_traceback)
    logging.getLogger("asyncio").addFilter(_is_no_cancellation)


def _drop_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = record.exc_text = None
    return True


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Whether a record is more than a polling task that was cancelled when its run ended."""
    return not (record.exc_info and record.exc_info[0] and issubclass(record.exc_info[0], asyncio.CancelledError))
