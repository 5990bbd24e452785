"""Ctrl-C, as the code that runs a flow sees it."""

import asyncio
import os
import signal

import pytest

from flows.interrupted import run_until_interrupted


async def ends_by_an_error(*, pressed: bool) -> None:
    try:
        if pressed:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
    finally:
        raise ConnectionError("the Prefect server is busy")


def test_error_that_ctrl_c_brings_about_counts_as_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.interrupted._leave", lambda: None)  # else this process ends ten seconds later
    with pytest.raises(KeyboardInterrupt):
        run_until_interrupted(ends_by_an_error(pressed=True))


def test_error_of_the_run_stays_what_it_is() -> None:
    with pytest.raises(ConnectionError):
        run_until_interrupted(ends_by_an_error(pressed=False))
