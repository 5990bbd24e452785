"""`gguf-flow serve`: a Prefect server if none answers, the model host, and every pipeline as a deployment."""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.processes import model_host, prefect_server
from llm_core.errors import GgufFlowError
from llm_core.pipeline import PipelineSpec, load_valid_pipelines
from llm_core.plan import make_plan
from llm_core.registry import load_registry
from llm_core.settings import Settings

if TYPE_CHECKING:
    from prefect.runner import Runner

POLL_S = 1.0
"""Between two looks for runs that are due, and for changes of pipeline.yaml."""

Say = Callable[[str], None]
Stamp = tuple[int, int] | None
"""Time and size of a file; `None`: there is none."""


def serve(settings: Settings, say: Say) -> None:
    """Serve until Ctrl-C or SIGTERM; then everything that was started here is gone.

    Raises:
        GgufFlowError: it cannot start; one line says why.
    """
    seen = _stamp(settings.pipeline_file)
    pipelines = served_pipelines(settings, say)
    with prefect_server(say) as api, model_host(settings, say):
        say(f"Prefect UI: {api.removesuffix('/api')}")
        asyncio.run(_serve(settings, pipelines, seen, say))
        say("stopping")


def served_pipelines(settings: Settings, say: Say) -> dict[str, PipelineSpec]:
    """The pipelines that can be served; what is wrong with the others is said, a line each.

    One whose models are not here is served all the same: they may come, and its runs say what is missing.
    """
    pipelines, problems = load_valid_pipelines(settings.pipeline_file)
    for problem in problems:
        say(problem)
    registry = load_registry(settings)
    for name, spec in pipelines.items():
        try:
            make_plan(spec, registry, source=settings.pipeline_file)
        except GgufFlowError as error:
            say(f"{name} cannot run yet: {error}")
    return pipelines


async def _serve(settings: Settings, pipelines: dict[str, PipelineSpec], seen: Stamp, say: Say) -> None:
    from prefect.runner import Runner

    runner = Runner(name="gguf-flow", query_seconds=POLL_S, pause_on_shutdown=False)
    await _deploy(runner, pipelines, say)
    tasks = [asyncio.create_task(runner.start()), asyncio.create_task(_follow(settings, runner, seen, say))]
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sig, stopped.set)
    await stopped.wait()
    if runner.started:
        await runner.astop()
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


async def _deploy(runner: "Runner", pipelines: dict[str, PipelineSpec], say: Say) -> None:
    from deployments.pipelines import deployments

    for deployment in deployments(pipelines):
        await runner.aadd_deployment(deployment)
        when = f", {len(deployment.schedules)} schedule" if deployment.schedules else ""
        say(f"serving {deployment.flow_name}/{deployment.name}{when}")


async def _follow(settings: Settings, runner: "Runner", seen: Stamp, say: Say) -> None:
    """Serve what pipeline.yaml says after each change; a wrong edit is said, and changes nothing.

    Args:
        seen: the file as it was when it was read for what is served now.
    """
    path = settings.pipeline_file
    while True:
        await asyncio.sleep(POLL_S)
        if _stamp(path) == seen:
            continue
        seen = _stamp(path)
        say(f"{path} has changed")
        try:
            await _deploy(runner, await asyncio.to_thread(served_pipelines, settings, say), say)
        except GgufFlowError as error:
            say(f"{error}; what was served before still is")


def _stamp(path: Path) -> Stamp:
    try:
        return path.stat().st_mtime_ns, path.stat().st_size
    except OSError:
        return None
