"""The answers of a multi-model stage become one."""

from prefect import task

from llm_core.merge import merged
from llm_core.model_step import input_texts
from llm_core.plan import Call, StagePlan
from llm_core.session_records import StepRecord
from tasks.generate import ask, crashed, once_a_run, stage_files
from tasks.record import record
from tasks.run import Run
from tasks.watched import Watched


@task(cache_key_fn=once_a_run, persist_result=True, retry_condition_fn=crashed)
def aggregate(
    run: Run, stage: StagePlan, question: str, members: list[StepRecord], inputs: dict[str, StepRecord]
) -> StepRecord:
    """Merge `members`' answers as the stage says; candidates and evidence are kept beside the answer."""

    def ask_watched(call: Call, step: str, message: str) -> StepRecord:
        watched = Watched(run, stage, call, step)
        answer = ask(run, stage, call, step, message, threads_of(run, stage, call), watched.token)
        watched.end(answer)
        return answer

    step = merged(stage, question, members, input_texts(inputs), ask_watched)
    record(run, step, stage_files(stage)[None])
    return step


def threads_of(run: Run, stage: StagePlan, call: Call) -> int:
    """Of a model that is asked on the way to a stage's answer."""
    return next(placement.threads for placement in run.stage(stage.id).placements if placement.call == call)
