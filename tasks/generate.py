"""One model answers in one stage."""

import hashlib
from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.context import TaskRunContext

from llm_core.left_alone import wait_while
from llm_core.model_step import as_member, input_texts
from llm_core.plan import Call, StagePlan
from llm_core.prompts import user_message
from llm_core.run_images import images_of
from llm_core.session import step_files
from llm_core.session_images import Images
from llm_core.session_records import StepRecord
from llm_core.worker import OnToken
from tasks.ask import Question, ask, is_last_try, worth_a_retry
from tasks.preflight import Admission
from tasks.record import record
from tasks.run import Run
from tasks.watched import Watched


def once_a_run(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """A step that has finished is not run again when its flow run is retried with the same session; equal samples have
    names of their own.

    Prefect makes a file name of it, so a step's name, which may hold anything, stands as its hash.
    """
    run: Run = parameters["run"]
    name = hashlib.sha256(context.task.name.encode()).hexdigest()
    return f"{context.task_run.flow_run_id}-{run.session.record.id}-{name}"


@task(cache_key_fn=once_a_run, persist_result=True, retry_condition_fn=worth_a_retry)
def generate(
    run: Run, stage: StagePlan, call: Call, question: str, admission: Admission, inputs: dict[str, StepRecord]
) -> StepRecord:
    """Ask `call`'s model; the answer is in the session before the task ends.

    Args:
        admission: of this stage's preflight.
        inputs: the last step of each stage that this one reads.
    """
    watched = Watched(run, stage, call, f"{stage.id}: {call.member}")
    asked = member_question(stage, call, question, admission, input_texts(inputs), run.images)
    is_last, quorum = is_last_try(), run.quorums.get(stage.id)

    def token(text: str, n_tokens: int) -> None:
        if quorum:
            quorum.check()
        watched.token(text, n_tokens)

    def answer_it() -> StepRecord:
        return member_answer(run, asked, question, input_texts(inputs), is_last, token)

    answer = wait_while(quorum.check, answer_it) if quorum else answer_it()
    watched.end(answer)
    record(run, answer, stage_files(stage)[call.member])
    if quorum:
        quorum.answered()
    return answer


def member_question(
    stage: StagePlan,
    call: Call,
    question: str,
    admission: Admission,
    texts: Mapping[str, str],
    images: Images,
    item: int = 1,
) -> Question:
    """What a member of a stage is asked: `question`, the `texts` of earlier stages, and what the stage looks at."""
    message = user_message(question, texts, call.instructions)
    step, threads = f"{stage.id}: {call.member}", admission.threads.get(call.member, 0)
    return Question(stage, call, step, message, call.constraint, threads, images_of(stage, images), item)


def member_answer(
    run: Run,
    asked: Question,
    question: str,
    texts: Mapping[str, str],
    is_last: bool,
    on_token: OnToken | None = None,
) -> StepRecord:
    """What the member says, at its place in the stage."""
    answer = ask(run, asked, is_last, on_token)
    return as_member(asked.stage, asked.call, question, texts, answer)


def stage_files(stage: StagePlan) -> dict[str | None, str]:
    """File name by member of a stage, and of its aggregation under `None`."""
    return step_files(stage.number, [call.member for call in stage.calls], stage.aggregation is not None)
