"""One model answers in one stage."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.context import TaskRunContext

from llm_core.call_params import Constraint
from llm_core.errors import GgufFlowError, ModelCrashed, ProviderUnavailable
from llm_core.model_step import as_member, input_texts, record_of, request_of, reused_record
from llm_core.plan import Call, StagePlan
from llm_core.prompts import user_message
from llm_core.providers.faults import wait_s
from llm_core.session import step_files
from llm_core.session_records import StepRecord
from llm_core.worker import OnToken
from tasks.preflight import Admission
from tasks.record import record
from tasks.run import Run, progress
from tasks.watched import Watched

RETRYABLE = (ModelCrashed, ProviderUnavailable)
"""Errors after which the same call may do better."""


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


def once_a_run(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """A step that has finished is not run again when its flow run is retried; equal samples have names of their own.

    Prefect makes a file name of it, so a step's name, which may hold anything, stands as its hash.
    """
    return f"{context.task_run.flow_run_id}-{hashlib.sha256(context.task.name.encode()).hexdigest()}"


@task(cache_key_fn=once_a_run, persist_result=True, retry_condition_fn=worth_a_retry)
def generate(
    run: Run, stage: StagePlan, call: Call, question: str, admission: Admission, inputs: dict[str, StepRecord]
) -> StepRecord:
    """Ask `call`'s model; the answer is in the session before the task ends.

    Args:
        admission: of this stage's preflight.
        inputs: the last step of each stage that this one reads.
    """
    step = f"{stage.id}: {call.member}"
    watched = Watched(run, stage, call, step)
    answer = member_answer(
        run, stage, call, question, admission, input_texts(inputs), is_last_try(), on_token=watched.token
    )
    watched.end(answer)
    record(run, answer, stage_files(stage)[call.member])
    return answer


def member_answer(
    run: Run,
    stage: StagePlan,
    call: Call,
    question: str,
    admission: Admission,
    texts: Mapping[str, str],
    is_last: bool,
    on_token: OnToken | None = None,
) -> StepRecord:
    """What one member of a stage says to `question` and to the `texts` of earlier stages."""
    message = user_message(question, texts, call.instructions)
    step, threads = f"{stage.id}: {call.member}", admission.threads.get(call.member, 0)
    answer = ask(run, stage, call, step, message, call.constraint, threads, is_last, on_token)
    return as_member(stage, call, question, texts, answer)


def ask(
    run: Run,
    stage: StagePlan,
    call: Call,
    step: str,
    message: str,
    constraint: Constraint | None,
    threads: int,
    is_last: bool,
    on_token: OnToken | None = None,
) -> StepRecord:
    """One generation as the record of `step`, or what an identical one has said before.

    Where `call`'s model gives no answer, its fallbacks are asked, which the record then tells.

    Args:
        threads: of a model in memory.
        is_last: whether nobody will try again: only then a fallback is asked after what a retry might mend.
    """
    failed: list[str] = []
    for asked in (call, *call.fallback):
        try:
            answer = _ask_one(run, stage, asked, step, message, constraint, threads, on_token)
        except GgufFlowError as error:
            if not is_last and isinstance(error, RETRYABLE):
                raise
            failed.append(str(error))
            if asked is (call, *call.fallback)[-1]:
                error.args = ("; then ".join(failed),)
                raise
            continue
        if failed:
            note = f"{step}: {asked.model} answered in place of {call.model}: {'; then '.join(failed)}"
            answer = answer.model_copy(update={"degraded": (*answer.degraded, note), "cache_key": None})
        return answer
    raise AssertionError("the last one's error was not raised")


def _ask_one(
    run: Run,
    stage: StagePlan,
    call: Call,
    step: str,
    message: str,
    constraint: Constraint | None,
    threads: int,
    on_token: OnToken | None,
) -> StepRecord:
    started, load = datetime.now(UTC), run.placed.get(call)
    if call.remote and constraint and not constraint.schema and constraint != call.constraint:
        constraint = None  # a grammar that only makes replies easy to read
    asked = replace(call, constraint=constraint)
    request = request_of(asked, message, run.spare_threads.get(call, threads), run.cores)
    key = run.answers.key(load or call.remote, request) if call.cache else None
    if key and (found := run.answers.find(key)):
        return reused_record(stage, asked, step, *found)
    result = run.provider(call).generate(request, on_token)
    answer = record_of(stage, asked, step, load, threads, result, started)
    if result.degraded:
        return answer
    if load and result.peak_rss_bytes is not None:
        run.estimates.measured(load, result.peak_rss_bytes, result.peak_vram_bytes)
    return answer.model_copy(update={"cache_key": key})


def stage_files(stage: StagePlan) -> dict[str | None, str]:
    """File name by member of a stage, and of its aggregation under `None`."""
    return step_files(stage.number, [call.member for call in stage.calls], stage.aggregation is not None)
