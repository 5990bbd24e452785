"""What every command that runs a flow in this process does first, and how it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from rich.console import Console

from llm_core.errors import GenerationTimeout, GgufFlowError, InputError, ModelCrashed, ProviderUnavailable

CRASH_EXIT_CODE = 1
"""A run that failed by no fault of what was typed or configured: a crash, a time-out, a provider that is down."""
USER_EXIT_CODE = 2


@contextmanager
def starting_prefect(stderr: Console) -> Iterator[None]:
    """Import what needs Prefect inside the block: that takes seconds, and is told.

    Raises:
        InputError: no server answers at PREFECT_API_URL.
    """
    # The error line is ours; Prefect still sends its logs to the API, where the UI shows them.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with stderr.status("starting Prefect"):
        yield
        _require_server()


def exit_code(cause: BaseException | None) -> int:
    """Of a run that failed by `cause`."""
    by_crash = isinstance(cause, ModelCrashed | GenerationTimeout | ProviderUnavailable)
    return CRASH_EXIT_CODE if by_crash or not isinstance(cause, GgufFlowError) else USER_EXIT_CODE


def _require_server() -> None:
    """One line at once, where Prefect itself would retry a dead server for half a minute."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return
    try:
        httpx.get(f"{url}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(
            f"no Prefect server answers at PREFECT_API_URL {url} ({error}); "
            "start one with `prefect server start`, or unset PREFECT_API_URL for a temporary one"
        ) from None
