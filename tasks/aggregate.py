"""The answers of a multi-model stage become one."""

from prefect import task

from llm_core.call_params import Constraint
from llm_core.merge import check_quorum, merged
from llm_core.model_step import input_texts
from llm_core.plan import Call, StagePlan
from llm_core.session_records import StepRecord
from tasks.ask import Question, ask, is_last_try, worth_a_retry
from tasks.cascade import NotAsked
from tasks.generate import once_a_run, stage_files
from tasks.record import record
from tasks.run import Run, progress
from tasks.watched import Watched


@task(cache_key_fn=once_a_run, persist_result=True, retry_condition_fn=worth_a_retry)
def aggregate(
    run: Run,
    stage: StagePlan,
    question: str,
    members: list[StepRecord | NotAsked | Exception],
    inputs: dict[str, StepRecord],
) -> StepRecord:
    """Merge `members`' answers as the stage says; candidates and evidence are kept beside the answer.

    Args:
        members: in the order of the stage; the error of one that failed, where the stage has a quorum.
    """
    answered = [member for member in members if isinstance(member, StepRecord)]
    spared = [member.member for member in members if isinstance(member, NotAsked)]
    of_calls = zip(stage.calls, members, strict=True)
    failed = {call.member: str(m) for call, m in of_calls if not isinstance(m, StepRecord | NotAsked)}
    notes = check_quorum(stage, len(answered), failed)
    for note in notes:
        progress.get().say(note)
    if spared:
        progress.get().say(f"{stage.id}: enough members agree; not asked: {', '.join(spared)}")

    def ask_watched(call: Call, step: str, message: str, constraint: Constraint | None) -> StepRecord:
        watched = Watched(run, stage, call, step)
        asked = Question(stage, call, step, message, constraint, threads_of(run, stage, call))
        answer = ask(run, asked, is_last_try(), watched.token)
        watched.end(answer)
        return answer

    step = merged(stage, question, answered, input_texts(inputs), ask_watched)
    step = step.model_copy(update={"degraded": (*step.degraded, *notes)})
    record(run, step, stage_files(stage)[None])
    return step


def threads_of(run: Run, stage: StagePlan, call: Call) -> int:
    """Of a model that is asked on the way to a stage's answer; 0 for a remote one."""
    return next((placed.threads for placed in run.stage(stage.id).placements if placed.call == call), 0)
