"""The command line. Answers go to stdout, everything else to stderr; `models`, `plan`, `sessions` import no Prefect."""

import logging
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter, validators
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from flows.tables import human_bytes, models_table, session_text, sessions_table, status_table
from llm_core.dataset import read_items
from llm_core.documents import describe, load_document, near_name
from llm_core.errors import GgufFlowError, InputError, InsufficientMemory, ModelFileError, PullError
from llm_core.gguf_file import read_gguf
from llm_core.machine import budget, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.memory_plan import memory_plan
from llm_core.overrides import override
from llm_core.pipeline import BASE, PipelineSpec, load_pipeline, load_pipelines
from llm_core.plan import make_plan
from llm_core.prompts import check_question
from llm_core.registry import ModelEntry, ModelsDocument, load_registry, model_path, models_directory
from llm_core.residency import plan_residency
from llm_core.session import check_writable, list_sessions, load_session, load_steps
from llm_core.settings import Settings
from llm_core.status_board import read_board

app = App(name="gguf-flow", help="Several GGUF models answer one question in stages.", version_flags=["--version"])
models = App(name="models", help="The models of models.yaml.")
sessions = App(name="sessions", help="The runs so far.")
app.command(models)
app.command(sessions)
stdout = Console(width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True)

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
    from flows.resume import output_file, unfinished_session

    settings = Settings()
    read_items(dataset, limit)
    spec = override(load_pipeline(settings.pipeline_file, pipeline), set or [])
    make_plan(spec, load_registry(settings), source=settings.pipeline_file)
    output_file(output, is_new=not resume)
    if resume:
        unfinished_session(settings, dataset, spec.name)
    check_writable(settings.sessions_folder)
    return run_dataset(dataset.absolute(), spec.name, output, limit, resume, set or [], stderr=stderr)


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
def host(*, bind: str | None = None, port: int | None = None) -> None:
    """Keep models loaded between runs, behind an OpenAI-compatible API. Ctrl-C unloads them.

    Parameters
    ----------
    bind
        The address to listen on; other than loopback only with a token of your own in GGUF_FLOW_HOST_TOKEN.
    port
        0 takes a free one.
    """
    from llm_core.host_process import serve_models

    settings = Settings()
    where = settings.host_bind if bind is None else bind, settings.host_port if port is None else port
    load_registry(settings)
    serve_models(settings, *where, say)


@models.default
def list_models(*, status: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show every model of models.yaml and whether it can be used.

    Parameters
    ----------
    status
        Show what is loaded on this machine now instead.
    """
    settings = Settings()
    if status:
        rows = read_board(settings.cache_folder)
        if rows:
            stdout.print(status_table(rows))
        else:
            say("no model is loaded now")
        return
    logging.getLogger("llm_core.registry").setLevel(logging.ERROR)  # the table says it already
    registry = load_registry(settings)
    stdout.print(models_table(registry, MemoryEstimates(settings.cache_folder)))
    say(f"in {registry.models_dir}")


@models.command(name="pull")
def pull_models(*names: str) -> None:
    """Fetch models from their `source`, all of them or those named.

    Parameters
    ----------
    names
        Models of models.yaml.
    """
    settings = Settings()
    document = load_document(settings.models_file, ModelsDocument)
    for name in names:
        if name not in document.models:
            raise InputError(f"{settings.models_file}: no model '{name}'{near_name(name, document.models)}")
    folder = models_directory(document, settings)
    wanted = names or [name for name, entry in document.models.items() if entry.source]
    for name in wanted:
        _pull_one(name, document.models[name], folder)


def _pull_one(name: str, entry: ModelEntry, folder: Path) -> None:
    from llm_core.pull import pull

    if entry.file is None:
        raise PullError(f"model '{name}' is remote; there is nothing to pull")
    target = model_path(folder, name, entry)
    if _is_model(target):
        say(f"{name}: is here already: {target}")
        return
    if entry.source is None:
        raise PullError(f"model '{name}' has no 'source'; put its file at {target}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=stderr) as progress:
        row = progress.add_task(name, total=None)
        digest = pull(
            name,
            entry.source,
            entry.sha256,
            target,
            lambda done, size: progress.update(row, completed=done, total=size),
        )
    say(f"{name}: {target} ({human_bytes(target.stat().st_size)}, sha256 {digest})")


def _is_model(path: Path) -> bool:
    try:
        read_gguf(path)
    except ModelFileError:
        return False
    return True


def say(text: str) -> None:
    stderr.print(text, markup=False, highlight=False, soft_wrap=True)


@sessions.default
def list_all_sessions() -> None:
    """List the runs so far."""
    folder = Settings().sessions_folder
    found = list(list_sessions(folder))
    if found:
        stdout.print(sessions_table(found))
    else:
        say(f"no session yet in {folder}")


@sessions.command(name="show")
def show_session(id: str, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show one run: the question, every step's answer, the final answer.

    Parameters
    ----------
    id
        Such as session_001.
    json
        Print the session and its steps as one JSON object.
    """
    folder = Settings().sessions_folder
    session = load_session(folder, id)
    steps = load_steps(folder, session)
    if json:
        import json as json_module

        data = session.model_dump(mode="json") | {"steps": [step.model_dump(mode="json") for step in steps]}
        print(json_module.dumps(data, indent=2))
        return
    final = folder / id / "final.txt"
    print(session_text(session, steps, final.read_text() if final.exists() else None))


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
