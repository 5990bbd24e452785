"""`gguf-flow run`: one question through a pipeline in this process, watched on the terminal."""

import asyncio
import json
from typing import Any

from rich.console import Console

from flows.prefect_start import exit_code, starting_prefect
from flows.progress import watcher
from llm_core.pipeline import PipelineSpec
from llm_core.session import StepRecord, load_session, load_steps
from llm_core.settings import Settings


def run_question(spec: PipelineSpec, question: str, settings: Settings, *, as_json: bool, stderr: Console) -> int:
    """Run, print the answer (or one JSON object) on stdout, and return the exit code."""
    with starting_prefect(stderr):
        from flows.pipeline import compile_flow
        from flows.result import PipelineFailed
    from tasks.run import progress

    with watcher(stderr) as watching:
        progress.set(watching)
        try:
            result = asyncio.run(_answer(compile_flow(spec, settings), question))
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


async def _answer(flow: Any, question: str) -> Any:
    return await flow(question=question)


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
