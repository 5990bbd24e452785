"""A person has looked at a stage's answer."""

from datetime import UTC, datetime

from prefect import task

from llm_core.model_step import handed_on, input_texts
from llm_core.plan import StagePlan
from llm_core.session import approval_file
from llm_core.session_records import StepRecord
from tasks.generate import once_a_run
from tasks.record import record
from tasks.run import Run


@task(cache_key_fn=once_a_run, persist_result=True)
def approve(
    run: Run, stage: StagePlan, question: str, answer: StepRecord, text: str, inputs: dict[str, StepRecord]
) -> StepRecord:
    """Later stages read `text` in place of the answer; the answer itself stays in its own step."""
    now = datetime.now(UTC)
    approved = StepRecord(
        id=f"{stage.number} {stage.id}: approval",
        number=stage.number,
        position=answer.position + 1,
        stage=stage.id,
        kind="approval",
        text=text,
        parsed=answer.parsed if text == answer.text else None,
        output=handed_on(stage, question, input_texts(inputs), text),
        started=now,
        ended=now,
        edited=text != answer.text,
    )
    record(run, approved, approval_file(stage.number))
    return approved
