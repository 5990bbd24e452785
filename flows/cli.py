"""The command line. Answers go to stdout, everything else to stderr; `models`, `plan`, `sessions` import no Prefect."""

import logging
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, validators
from pydantic import ValidationError

from flows.console import say, stderr
from flows.models_cli import models
from flows.sessions_cli import sessions
from llm_core.dataset import read_items
from llm_core.documents import describe
from llm_core.errors import GgufFlowError, InputError, InsufficientMemory
from llm_core.machine import budget, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.memory_plan import memory_plan
from llm_core.overrides import override
from llm_core.pipeline import BASE, PipelineSpec, load_pipeline, load_pipelines
from llm_core.pipeline_yaml import save_pipeline
from llm_core.plan import make_plan
from llm_core.prompts import check_question
from llm_core.registry import load_registry
from llm_core.rerun import Changes, plan_rerun
from llm_core.residency import plan_residency
from llm_core.session import check_writable, load_session
from llm_core.settings import Settings
from llm_core.snapshot import load_snapshot

app = App(name="gguf-flow", help="Several GGUF models answer one question in stages.", version_flags=["--version"])
app.command(models)
app.command(sessions)

Pipeline = Annotated[str, Parameter(name=["--pipeline", "-p"])]
Assignments = Annotated[list[str] | None, Parameter(name="--set", negative=())]


@app.command
def run(
    question: str | None = None,
    *,
    pipeline: Pipeline = BASE,
    set: Assignments = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Answer QUESTION with a pipeline.

    Parameters
    ----------
    question
        The question; read from stdin if left out.
    pipeline
        A pipeline of pipeline.yaml.
    set
        stage.param=value: changed for this run only; may be repeated.
    json
        Print one JSON object instead of the answer.
    """
    from flows.run_command import run_question

    text = sys.stdin.read() if question is None and not sys.stdin.isatty() else question or ""
    check_question(text)
    settings = Settings()
    spec = override(load_pipeline(settings.pipeline_file, pipeline), set or [])
    make_plan(spec, load_registry(settings), source=settings.pipeline_file)
    check_writable(settings.sessions_folder)
    return run_question(spec, text, settings, as_json=json, stderr=stderr)


@app.command
def batch(
    dataset: Path,
    *,
    pipeline: Pipeline = BASE,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    limit: Annotated[int | None, Parameter(validator=validators.Number(gte=1))] = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    set: Assignments = None,
) -> int:
    """Take every question of DATASET through a pipeline, model by model.

    Parameters
    ----------
    dataset
        JSONL or CSV with a `question` column; other columns pass through.
    pipeline
        A pipeline of pipeline.yaml.
    output
        Where the results go, as JSON lines; into the session if left out.
    limit
        Only the first so many rows.
    resume
        Go on with the last run over this dataset that did not come to its end.
    set
        stage.param=value: changed for this run only; may be repeated.
    """
    from flows.batch_command import run_dataset
    from flows.resume import output_file, refuse_approval, unfinished_session

    settings = Settings()
    read_items(dataset, limit)
    spec = override(load_pipeline(settings.pipeline_file, pipeline), set or [])
    refuse_approval(spec)
    make_plan(spec, load_registry(settings), source=settings.pipeline_file)
    output_file(output, is_new=not resume)
    if resume:
        unfinished_session(settings, dataset, spec.name)
    check_writable(settings.sessions_folder)
    return run_dataset(dataset.absolute(), spec.name, output, limit, resume, set or [], stderr=stderr)


@app.command
def rerun(
    session: str,
    *,
    from_stage: Annotated[str, Parameter(name="--from")],
    set: Assignments = None,
    model: Annotated[list[str] | None, Parameter(negative=())] = None,
    prompt: Annotated[list[str] | None, Parameter(negative=())] = None,
    times: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run a stage of an earlier session again, and all that depends on it, into a session of its own.

    Parameters
    ----------
    session
        Such as session_001; its own pipeline and models are used, not today's.
    from_stage
        The first stage that runs again; everything else is carried over.
    set
        stage.param=value: changed this time; may be repeated.
    model
        stage=NAME: the model that takes the place of the stage's own; may be repeated.
    prompt
        stage=FILE: its instructions from a file; may be repeated.
    times
        So often, each into a session of its own.
    json
        Print one JSON object a run instead of the answer.
    """
    from flows.run_command import run_again

    settings = Settings()
    prompts = {stage: _read_prompt(file) for stage, file in _pairs("--prompt", prompt).items()}
    changes = Changes(tuple(set or ()), _pairs("--model", model), prompts)
    today = load_registry(settings)
    planned = plan_rerun(settings.sessions_folder, session, from_stage, changes, today, settings.cache_folder)
    check_writable(settings.sessions_folder)
    codes = [run_again(planned, changes, settings, as_json=json, stderr=stderr) for _ in range(times)]
    return max(codes)


@app.command
def replay(
    session: str,
    *,
    verify: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Ask every step of an earlier session once more, from what it was given then, and compare.

    Parameters
    ----------
    session
        Such as session_001; its own pipeline and models are used, not today's.
    verify
        Let the exit code tell: 0 all identical, 1 a step differs, 3 none differs, but some cannot be checked.
    json
        Print one JSON object instead of a table.
    """
    from flows.replay_command import replay_session

    return replay_session(session, Settings(), verify=verify, as_json=json)


def _pairs(option: str, written: list[str] | None) -> dict[str, str]:
    pairs = {}
    for one in written or []:
        stage, equals, value = one.partition("=")
        if not (stage and equals and value):
            raise InputError(f"{option} {one}: expected stage=…, such as draft=qwen")
        pairs[stage] = value
    return pairs


def _read_prompt(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompt {file}: cannot be read: {error}") from None


@app.command
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


@app.command
def plan(*, pipeline: Pipeline | None = None, set: Assignments = None) -> None:
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
    print(planned)
    print()
    try:
        within = budget(machine, settings.limits)
        print(memory_plan(plan_residency(planned, within, estimates.need, machine.cores)))
    except InsufficientMemory as refusal:
        raise InsufficientMemory(f"{spec.name} would be refused: {refusal}") from None


@app.command
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


def main() -> None:
    """Run the command line; whatever a user can mend is one line on stderr and exit code 2."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("gguf-flow: %(message)s"))
    logging.getLogger("llm_core").addHandler(warnings)
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        code = _refuse(" ".join(str(error).split()) + "; see --help")
    except GgufFlowError as error:
        code = _refuse(str(error))
    except ValidationError as error:
        code = _refuse(f"GGUF_FLOW_* settings: {describe(error)}")
    except KeyboardInterrupt:
        say("gguf-flow: interrupted; finished steps are in the session")
        code = 130
    except BrokenPipeError:
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> int:
    say(f"gguf-flow: {message}")
    return 2
