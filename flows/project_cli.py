"""`gguf-flow plan`, `save`, `host`: what is written down, and the models behind it."""

from typing import Annotated

from cyclopts import Parameter

from flows.console import say
from llm_core.errors import InsufficientMemory
from llm_core.machine import budget, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.memory_plan import memory_plan
from llm_core.overrides import override
from llm_core.pipeline import PipelineSpec, load_pipeline, load_pipelines
from llm_core.pipeline_yaml import save_pipeline
from llm_core.plan_text import plan_text
from llm_core.planner import make_plan
from llm_core.registry import load_registry
from llm_core.residency import plan_residency
from llm_core.session_files import load_session
from llm_core.settings import Settings
from llm_core.snapshot import load_snapshot


def save(session: str, name: str) -> None:
    """Keep the pipeline of an earlier run in pipeline.yaml.

    Parameters
    ----------
    session
        Such as session_001: a run of `manual`, or any other.
    name
        What the pipeline is called from now on.
    """
    settings = Settings()
    load_session(settings.sessions_folder, session)
    save_pipeline(settings.pipeline_file, name, load_snapshot(settings.sessions_folder, session).spec)
    say(f"{settings.pipeline_file}: pipelines.{name}")


def plan(
    *,
    pipeline: Annotated[str | None, Parameter(name=["--pipeline", "-p"])] = None,
    set: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
) -> None:
    """Show what would run: stages, inputs, fan-out, models, parameters. Nothing is loaded.

    Parameters
    ----------
    pipeline
        A pipeline of pipeline.yaml; all of them if left out.
    set
        stage.param=value, as for `run`.
    """
    settings = Settings()
    names = [pipeline] if pipeline else list(load_pipelines(settings.pipeline_file))
    for number, name in enumerate(names):
        if number:
            print()
        _print_plan(override(load_pipeline(settings.pipeline_file, name), set or []), settings)


def _print_plan(spec: PipelineSpec, settings: Settings) -> None:
    planned = make_plan(spec, load_registry(settings), source=settings.pipeline_file)
    machine = read_machine()
    estimates = MemoryEstimates(settings.cache_folder)
    print(plan_text(planned))
    print()
    try:
        within = budget(machine, settings.limits)
        print(memory_plan(plan_residency(planned, within, estimates.need, machine.cores)))
    except InsufficientMemory as refusal:
        raise InsufficientMemory(f"{spec.name} would be refused: {refusal}") from None


def host(
    *,
    bind: str | None = None,
    port: int | None = None,
    with_parent: Annotated[bool, Parameter(negative=(), show=False)] = False,
) -> None:
    """Keep models loaded between runs, behind an OpenAI-compatible API. Ctrl-C unloads them.

    Parameters
    ----------
    bind
        The address to listen on; other than loopback only with a token of your own in GGUF_FLOW_HOST_TOKEN.
    port
        0 takes a free one.
    with_parent
        Stop when the process that started this one has gone; `serve` asks for it.
    """
    from llm_core.host_process import serve_models

    settings = Settings()
    where = settings.host_bind if bind is None else bind, settings.host_port if port is None else port
    load_registry(settings)
    serve_models(settings, *where, say, with_parent=with_parent)
