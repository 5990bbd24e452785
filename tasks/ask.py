"""A model is asked: what an earlier session knows is not asked again, and who stands in where there is no answer."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from prefect.context import TaskRunContext

from llm_core.call_params import Constraint
from llm_core.errors import GgufFlowError, ModelCrashed, ProviderUnavailable
from llm_core.images import Image
from llm_core.model_step import of_item, record_of, request_of, reused_record
from llm_core.plan import Call, StagePlan
from llm_core.providers.faults import wait_s
from llm_core.session_images import refs
from llm_core.session_records import StepRecord
from llm_core.worker import OnToken
from tasks.run import Run, progress

RETRYABLE = (ModelCrashed, ProviderUnavailable)
"""Errors after which the same call may do better."""


@dataclass(frozen=True)
class Question:
    """What is asked of whom, in a step of a stage."""

    stage: StagePlan
    call: Call
    step: str
    message: str
    constraint: Constraint | None
    """May be another than the call's own."""
    threads: int = 0
    """Of a model in memory."""
    images: tuple[Image, ...] = ()
    item: int = 1
    """Of a dataset, from 1."""


def worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    """Retry condition; how long to wait, Prefect asks the task afterwards, and this task is of this run alone."""
    try:
        state.result()
    except RETRYABLE as error:
        task.retry_delay_seconds = delay_s = wait_s(error, task_run.run_count)
        if task_run.run_count <= task.retries:
            progress.get().say(f"{task.name}: {error}; again in {delay_s:.0f} s")
        return True
    except Exception:
        return False
    return False


def is_last_try() -> bool:
    """Whether Prefect will not run the current task again, whatever becomes of it."""
    context = TaskRunContext.get()
    return context is None or context.task_run.run_count > context.task.retries


def ask(run: Run, question: Question, is_last: bool, on_token: OnToken | None = None) -> StepRecord:
    """One generation as the record of its step, or what an identical one has said before.

    Where the call's model gives no answer, its fallbacks are asked, which the record then tells.

    Args:
        is_last: whether nobody will try again: only then a fallback is asked after what a retry might mend.
    """
    failed: list[str] = []
    *others, last = (question.call, *question.call.fallback)
    for call in (*others, last):
        try:
            answer = _ask_one(run, replace(question, call=call), on_token)
        except GgufFlowError as error:
            if not is_last and isinstance(error, RETRYABLE):
                raise
            failed.append(str(error))
            if call is last:
                error.args = ("; then ".join(failed),)
                raise
            continue
        if failed:
            note = f"{question.step}: {call.model} answered in place of {question.call.model}: {'; then '.join(failed)}"
            answer = answer.model_copy(update={"degraded": (*answer.degraded, note), "cache_key": None})
        return answer
    raise AssertionError("the last one's error was not raised")


def _ask_one(run: Run, question: Question, on_token: OnToken | None) -> StepRecord:
    stage, call, constraint = question.stage, question.call, question.constraint
    started, load = datetime.now(UTC), run.placed.get(call)
    if call.remote and constraint and not constraint.schema and constraint != call.constraint:
        constraint = None  # a grammar that only makes replies easy to read
    threads = run.spare_threads.get(call, question.threads)
    asked = replace(call, constraint=constraint)
    request = of_item(question.item, request_of(asked, question.message, threads, run.cores, question.images))
    seen = {"images": refs(question.images)}
    key = run.answers.key(load or call.remote, request) if call.cache else None
    if key and (found := run.answers.find(key)):
        return reused_record(stage, asked, question.step, *found).model_copy(update=seen)
    result = run.provider(call).generate(request, on_token)
    answer = record_of(stage, asked, question.step, load, threads, result, started).model_copy(update=seen)
    if result.degraded:
        return answer
    if load and result.peak_rss_bytes is not None:
        run.estimates.measured(load, result.peak_rss_bytes, result.peak_vram_bytes)
    return answer.model_copy(update={"cache_key": key})
