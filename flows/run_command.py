"""`gguf-flow run` and `rerun`: one run in this process, watched on the terminal."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from rich.console import Console

from flows.interrupted import run_until_interrupted
from flows.prefect_start import exit_code, starting_prefect
from flows.progress import watcher
from llm_core.errors import InputError
from llm_core.pipeline import PipelineSpec
from llm_core.plan import StagePlan
from llm_core.rerun import Changes, Rerun, of_stages
from llm_core.session_files import load_session, load_steps
from llm_core.session_records import StepRecord
from llm_core.settings import Settings
from llm_core.stage_spec import StageSpec


def run_question(
    spec: PipelineSpec, question: str, images: list[str], settings: Settings, *, as_json: bool, stderr: Console
) -> int:
    """Run, print the answer (or one JSON object) on stdout, and return the exit code.

    Raises:
        InputError: a person would have to approve a stage, and none could be asked.
    """
    _require_person(spec.name, spec.stages)
    with starting_prefect(stderr):
        from flows.pipeline import compile_flow
    call = partial(compile_flow(spec, settings), question=question, images=images)
    return run_flow(call, settings, as_json=as_json, stderr=stderr)


def run_again(rerun: Rerun, changes: Changes, settings: Settings, *, as_json: bool, stderr: Console) -> int:
    """Rerun a stage and what depends on it; as `run_question`."""
    _require_person(rerun.spec.name, of_stages(rerun.plan, rerun.again).stages)
    with starting_prefect(stderr):
        from flows.rerun import rerun as rerun_flow
        from flows.rerun import stage_changes
    session, stage = rerun.branch.parent, rerun.branch.from_stage
    call = partial(rerun_flow, session=session, from_stage=stage, changes=stage_changes(changes))
    return run_flow(call, settings, as_json=as_json, stderr=stderr)


def run_flow(call: Callable[[], Any], settings: Settings, *, as_json: bool, stderr: Console) -> int:
    """Watch the one run that `call` makes, print its result, and return the exit code."""
    from flows.result import PipelineFailed
    from tasks.run import progress

    with watcher(stderr) as watching:
        progress.set(watching)
        try:
            result = run_until_interrupted(call())
        except PipelineFailed as failure:
            stderr.print(f"gguf-flow: {failure}", markup=False, highlight=False, soft_wrap=True)
            if as_json:
                print(json.dumps(_failed_object(settings, failure.session_path.name, str(failure)), indent=2))
            return exit_code(failure.cause)
    if as_json:
        head = result.model_dump(mode="json", exclude={"steps"})
        print(json.dumps({**head, "steps": [_step_object(step) for step in result.steps]}, indent=2))
    else:
        print(result.answer)
        stderr.print(f"session: {result.session_path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _require_person(pipeline: str, stages: Iterable[StageSpec | StagePlan]) -> None:
    if os.environ.get("PREFECT_API_URL") or (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    for stage in stages:
        if stage.approve:
            raise InputError(
                f"stage '{stage.id}' of '{pipeline}' has approve: true; run it in a terminal, "
                "or from the Prefect UI under `gguf-flow serve`"
            )


def _failed_object(settings: Settings, session_id: str, error: str) -> dict[str, Any]:
    session = load_session(settings.sessions_folder, session_id)
    return {
        "session_id": session.id,
        "session_path": str(settings.sessions_folder / session.id),
        "pipeline": session.pipeline,
        "status": session.status,
        "answer": None,
        "error": error,
        "steps": [_step_object(step) for step in load_steps(settings.sessions_folder, session)],
    }


def _step_object(step: StepRecord) -> dict[str, Any]:
    return {
        "id": step.id,
        "model": step.model,
        "text": step.text,
        "tokens": {"prompt": step.prompt_tokens, "completion": step.completion_tokens},
        "timings": {name: getattr(step, name) for name in ("load_s", "ttft_s", "tpot_s", "tokens_per_s")},
    }
