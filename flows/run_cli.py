"""`gguf-flow run`, `batch`, `rerun`, `replay`: models answer."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from flows.console import stderr
from llm_core.dataset import read_items
from llm_core.errors import InputError
from llm_core.image_sources import is_url
from llm_core.overrides import override
from llm_core.pipeline import BASE, load_pipeline
from llm_core.planner import make_plan
from llm_core.prompts import check_question
from llm_core.registry import load_registry
from llm_core.rerun import Changes, plan_rerun
from llm_core.run_images import check_images
from llm_core.session import check_writable
from llm_core.settings import Settings

Pipeline = Annotated[str, Parameter(name=["--pipeline", "-p"])]
Assignments = Annotated[list[str] | None, Parameter(name="--set", negative=())]


def run(
    question: str | None = None,
    *,
    image: Annotated[list[str] | None, Parameter(negative=())] = None,
    pipeline: Pipeline = BASE,
    set: Assignments = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Answer QUESTION with a pipeline.

    Parameters
    ----------
    question
        The question; read from stdin if left out.
    image
        A file or URL that the question is about; may be repeated.
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
    images = [source if is_url(source) else str(Path(source).absolute()) for source in image or []]
    check_images(spec, images, settings.image_sources)
    for source in images:
        if not is_url(source):
            settings.image_sources.load(source)  # an error before seconds go by, in which Prefect starts
    check_writable(settings.sessions_folder)
    return run_question(spec, text, images, settings, as_json=json, stderr=stderr)


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
    from flows.resume import check_dataset_images, output_file, refuse_approval, unfinished_session

    settings = Settings()
    items = read_items(dataset, limit)
    spec = override(load_pipeline(settings.pipeline_file, pipeline), set or [])
    refuse_approval(spec)
    make_plan(spec, load_registry(settings), source=settings.pipeline_file)
    check_dataset_images(spec, items, dataset, settings)
    output_file(output, is_new=not resume)
    if resume:
        unfinished_session(settings, dataset, spec.name)
    check_writable(settings.sessions_folder)
    return run_dataset(dataset.absolute(), spec.name, output, limit, resume, set or [], stderr=stderr)


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
