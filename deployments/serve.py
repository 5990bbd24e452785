"""`gguf-flow serve`: a Prefect server if none answers, the model host, and every pipeline as a deployment."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.processes import model_host, prefect_server
from llm_core.documents import load_document
from llm_core.errors import GgufFlowError
from llm_core.pipeline import PipelineSpec, load_valid_pipelines
from llm_core.plan import make_plan
from llm_core.registry import ModelsDocument, load_registry, models_directory
from llm_core.settings import Settings

if TYPE_CHECKING:
    from prefect.runner import Runner

POLL_S = 1.0
"""Between two looks for runs that are due, and for changes of the files."""
HEARTBEAT_S = 30
"""Between two signs of life of a flow run: the least that Prefect takes."""

Say = Callable[[str], None]
Stamps = dict[Path, tuple[int, int] | None]
"""Time and size of each file that is followed; `None`: there is none."""


def serve(settings: Settings, say: Say) -> None:
    """Serve until Ctrl-C or SIGTERM; then everything that was started here is gone.

    Raises:
        GgufFlowError: it cannot start; one line says why.
    """
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_S))
    seen = _stamps(settings)
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


async def _serve(settings: Settings, pipelines: dict[str, PipelineSpec], seen: Stamps, say: Say) -> None:
    from prefect.runner import Runner

    from deployments.crash_watch import watch_for_crashes

    await watch_for_crashes()
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


async def _follow(settings: Settings, runner: "Runner", seen: Stamps, say: Say) -> None:
    """Serve what the files say after each change; a wrong edit is said, and changes nothing.

    Args:
        seen: the files as they were when they were read for what is served now.
    """
    while True:
        await asyncio.sleep(POLL_S)
        now = await asyncio.to_thread(_stamps, settings)
        changed = [str(path) for path, stamp in now.items() if seen.get(path) != stamp]
        seen = now
        if not changed:
            continue
        say(f"{', '.join(changed)} changed")
        try:
            await _deploy(runner, await asyncio.to_thread(served_pipelines, settings, say), say)
        except GgufFlowError as error:
            say(f"{error}; what was served before still is")


def _stamps(settings: Settings) -> Stamps:
    """Of both files, and of the models folder: a model that comes or goes changes what the form of `manual` offers."""
    paths = [settings.pipeline_file, settings.models_file]
    with contextlib.suppress(GgufFlowError):  # said when it is read
        paths.append(models_directory(load_document(settings.models_file, ModelsDocument), settings))
    return {path: _stamp(path) for path in paths}


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_mtime_ns, path.stat().st_size
    except OSError:
        return None
