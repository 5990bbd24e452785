"""`gguf-flow serve`: a Prefect server if none answers, the model host, and every pipeline as a deployment."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.processes import model_host, prefect_server
from llm_core.documents import load_document
from llm_core.errors import GgufFlowError
from llm_core.pipeline import PipelineSpec, load_valid_pipelines
from llm_core.planner import make_plan
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
    written = read_pipelines(settings, say)
    with prefect_server(say) as api, model_host(settings, say):
        say(f"Prefect UI: {api.removesuffix('/api')}")
        asyncio.run(_serve(settings, written, seen, say))
        say("stopping")


@dataclass(frozen=True)
class Written:
    """What pipeline.yaml says now: the pipelines that can be served, and the names of those that are wrong."""

    right: dict[str, PipelineSpec]
    wrong: frozenset[str] = frozenset()


def read_pipelines(settings: Settings, say: Say) -> Written:
    """The pipelines of pipeline.yaml; what is wrong with them is said, a line each.

    One whose models are not here is served all the same: they may come, and its runs say what is missing.
    """
    pipelines, problems = load_valid_pipelines(settings.pipeline_file)
    for problem in problems.values():
        say(problem)
    registry = load_registry(settings)
    for name, spec in pipelines.items():
        try:
            make_plan(spec, registry, source=settings.pipeline_file)
        except GgufFlowError as error:
            say(f"{name} cannot run yet: {error}")
    return Written(pipelines, frozenset(problems))


async def _serve(settings: Settings, written: Written, seen: Stamps, say: Say) -> None:
    from prefect.runner import Runner

    from deployments.crash_watch import watch_for_crashes
    from deployments.quiet_logs import without_tracebacks

    without_tracebacks()
    await watch_for_crashes()
    runner = Runner(name="gguf-flow", query_seconds=POLL_S)  # on shutdown it pauses the schedules: no runs pile up
    await _deploy(runner, written, frozenset(), say)
    follow = _follow(settings, runner, seen, written, say)
    tasks = [asyncio.create_task(runner.start()), asyncio.create_task(follow)]
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


async def _deploy(runner: "Runner", written: Written, before: frozenset[str], say: Say) -> None:
    """Serve every pipeline that is right; one of `before` that stands in the file no more goes."""
    from prefect.client.orchestration import get_client

    from deployments.pipelines import deployments

    async with get_client() as client:
        for name in sorted(before - set(written.right) - written.wrong):
            gone = await client.read_deployment_by_name(f"{name}/{name}")
            await client.delete_deployment(gone.id)
            say(f"{name} is served no more")
    for deployment in deployments(written.right):
        await runner.aadd_deployment(deployment)
        when = f", {len(deployment.schedules)} schedule" if deployment.schedules else ""
        say(f"serving {deployment.flow_name}/{deployment.name}{when}")


async def _follow(settings: Settings, runner: "Runner", seen: Stamps, written: Written, say: Say) -> None:
    """Serve what the files say after each change; a wrong edit is said, and changes nothing.

    Args:
        seen: the files as they were when they were read for what is served now.
        written: what was read.
    """
    served = frozenset(written.right)
    while True:
        await asyncio.sleep(POLL_S)
        now = await asyncio.to_thread(_stamps, settings)
        changed = [str(path) for path, stamp in now.items() if seen.get(path) != stamp]
        seen = now
        if not changed:
            continue
        say(f"{', '.join(changed)} changed")
        try:
            written = await asyncio.to_thread(read_pipelines, settings, say)
            await _deploy(runner, written, served, say)
        except GgufFlowError as error:
            say(f"{error}; what was served before still is")
        else:
            served = frozenset(written.right) | (served & written.wrong)


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
