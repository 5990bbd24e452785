"""A member of a cascade: its model answers only while those before it do not agree."""

from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed

from llm_core.plan import Call, StagePlan
from llm_core.session_records import StepRecord
from tasks.ask import worth_a_retry
from tasks.generate import generate, once_a_run
from tasks.preflight import Admission
from tasks.run import Run


@dataclass(frozen=True)
class NotAsked:
    """Stands for the answer of a member that was not needed; there is no step of it."""

    member: str


def once_if_asked(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """As `once_a_run`; whether a member is needed is found anew when its flow run is retried, in which others may
    answer that had failed.
    """
    spared = _is_spared(parameters["stage"], parameters["before"])
    return None if spared else once_a_run(context, parameters)


@task(cache_key_fn=once_if_asked, persist_result=True, retry_condition_fn=worth_a_retry)
def generate_if_needed(
    run: Run,
    stage: StagePlan,
    call: Call,
    question: str,
    admission: Admission,
    inputs: dict[str, StepRecord],
    before: list[StepRecord | NotAsked | Exception],
) -> StepRecord | State[NotAsked]:
    """As `generate`, or a completed state named NotAsked.

    Args:
        before: what came of the members before this one; the error of one that failed, where the stage has a quorum.
    """
    if _is_spared(stage, before):
        return Completed(name="NotAsked", message="the members before it agree", data=NotAsked(call.member))
    return generate.fn(run, stage, call, question, admission, inputs)


def _is_spared(stage: StagePlan, before: list[StepRecord | NotAsked | Exception]) -> bool:
    assert stage.stop
    return stage.stop.is_met([answer.text for answer in before if isinstance(answer, StepRecord)])
