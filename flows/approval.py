"""A stage's answer before a person's eyes: in the terminal where the run was started from one, else in the UI."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from prefect import runtime
from prefect.flow_runs import apause_flow_run, asuspend_flow_run
from prefect.input import RunInput
from pydantic import Field
from slugify import slugify

from llm_core.plan import StagePlan
from tasks.run import progress

T = TypeVar("T")
PATIENCE_S = 30 * 24 * 3600
"""How long a run waits for its person; after that it fails."""


class Approval(RunInput):
    """What the UI asks when a run is resumed."""

    text: str = Field(title="Answer", description="What later stages read. Edit it, or resume with it as it is.")


async def approved_text(stage: StagePlan, text: str) -> str:
    """`text`, or what a person made of it.

    A run of a deployment is suspended: its process ends, its models may go, and it starts anew when it is resumed,
    with every finished step from before. Any other run pauses and holds what it has.
    """
    watcher = progress.get()
    edited = await _in_daemon(lambda: watcher.approve(stage.id, text))
    if edited is not None:
        return edited
    watcher.say(f"{stage.id}: waits to be approved in the Prefect UI")
    described = f"**{stage.id}** answered. Approve it as it is, or edit it; cancel the run to refuse it."
    asked = Approval.with_initial_data(description=described, text=text)
    key = f"{stage.number}-{slugify(stage.id)}"  # ids may differ only by what a key cannot hold
    if runtime.deployment.id:
        given = await asuspend_flow_run(wait_for_input=asked, timeout=PATIENCE_S, key=key)
    else:
        given = await apause_flow_run(wait_for_input=asked, timeout=PATIENCE_S, key=key, poll_interval=1)
    return given.text if given else text


async def _in_daemon(ask: Callable[[], T]) -> T:
    """`ask()` in a thread that no one waits for at the end, so that Ctrl-C at the prompt ends the run."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            value = ask()
        except BaseException as error:
            _settle(loop, answered.set_exception, error)
        else:
            _settle(loop, answered.set_result, value)

    threading.Thread(target=work, name="approval", daemon=True).start()
    return await answered


def _settle(loop: asyncio.AbstractEventLoop, settle: Callable[[Any], None], value: object) -> None:
    with contextlib.suppress(RuntimeError, asyncio.InvalidStateError):  # the run has ended meanwhile
        loop.call_soon_threadsafe(settle, value)
