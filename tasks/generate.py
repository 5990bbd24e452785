"""One model answers in one stage."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.context import TaskRunContext

from llm_core.call_params import Constraint
from llm_core.errors import ModelCrashed
from llm_core.model_step import as_member, input_texts, record_of, request_of, reused_record
from llm_core.plan import Call, StagePlan
from llm_core.prompts import user_message
from llm_core.session import step_files
from llm_core.session_records import StepRecord
from llm_core.worker import OnToken
from tasks.preflight import Admission
from tasks.record import record
from tasks.run import Run
from tasks.watched import Watched


def crashed(task: Any, task_run: Any, state: Any) -> bool:
    """Retry condition: only a model process that died may do better the next time."""
    try:
        state.result()
    except ModelCrashed:
        return True
    except Exception:
        return False
    return False


def once_a_run(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """A step that has finished is not run again when its flow run is retried; equal samples have names of their own.

    Prefect makes a file name of it, so a step's name, which may hold anything, stands as its hash.
    """
    return f"{context.task_run.flow_run_id}-{hashlib.sha256(context.task.name.encode()).hexdigest()}"


@task(cache_key_fn=once_a_run, persist_result=True, retry_condition_fn=crashed)
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
    answer = member_answer(run, stage, call, question, admission, input_texts(inputs), watched.token)
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
    on_token: OnToken | None = None,
) -> StepRecord:
    """What one member of a stage says to `question` and to the `texts` of earlier stages."""
    message = user_message(question, texts, call.instructions)
    step, threads = f"{stage.id}: {call.member}", admission.threads[call.member]
    answer = ask(run, stage, call, step, message, call.constraint, threads, on_token)
    return as_member(stage, call, question, texts, answer)


def ask(
    run: Run,
    stage: StagePlan,
    call: Call,
    step: str,
    message: str,
    constraint: Constraint | None,
    threads: int,
    on_token: OnToken | None = None,
) -> StepRecord:
    """One generation as the record of `step`, or what an identical one has said before."""
    started, load = datetime.now(UTC), run.placed[call]
    call = replace(call, constraint=constraint)
    request = request_of(call, message, threads, run.cores)
    key = run.answers.key(load, request) if call.cache else None
    if key and (found := run.answers.find(key)):
        return reused_record(stage, call, step, *found)
    result = run.pool.generate(load, call.model, request, on_token)
    answer = record_of(stage, call, step, load, threads, result, started)
    if result.degraded:
        return answer
    run.estimates.measured(load, result.peak_rss_bytes, result.peak_vram_bytes)
    return answer.model_copy(update={"cache_key": key})


def stage_files(stage: StagePlan) -> dict[str | None, str]:
    """File name by member of a stage, and of its aggregation under `None`."""
    return step_files(stage.number, [call.member for call in stage.calls], stage.aggregation is not None)
