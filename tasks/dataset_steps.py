"""The tasks of a dataset run: one per stage and model, and one per aggregation, each for all items."""

from collections.abc import Mapping, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from llm_core.call_params import Constraint
from llm_core.dataset import Item
from llm_core.dataset_results import step_names
from llm_core.merge import check_quorum, merged
from llm_core.model_step import input_texts
from llm_core.plan import Call, StagePlan
from llm_core.prompts import check_question
from llm_core.session_records import StepRecord
from tasks.aggregate import threads_of
from tasks.ask import Question, ask
from tasks.dataset_pass import Pass, StepSummary
from tasks.dataset_run import DatasetRun
from tasks.generate import member_answer, member_question
from tasks.preflight import Admission

Before = Mapping[str, StepSummary]
"""The steps that are read, by stage; waited for, and draws the graph."""


@task(cache_policy=NO_CACHE)
def generate_items(run: DatasetRun, stage: StagePlan, call: Call, admission: Admission, inputs: Before) -> StepSummary:
    """Every item through one member of a stage."""

    def answer(item: Item, is_last: bool) -> StepRecord | None:
        check_question(item.question)
        read = _read(run, stage, item)
        if read is None:
            return None
        texts, images = input_texts(read), run.images_of(stage, item)
        asked = member_question(stage, call, item.question, admission, texts, images, item.number)
        return member_answer(run, asked, item.question, texts, is_last)

    items = [item for item in run.items if _is_needed(run, stage, call, item)]
    return Pass(run, stage, f"{stage.id}: {call.member}", call, answer, stage.retries, items).work()


@task(cache_policy=NO_CACHE)
def aggregate_items(run: DatasetRun, stage: StagePlan, members: Sequence[StepSummary], inputs: Before) -> StepSummary:
    """Merge the answers of every item that all members have answered, or as many as the stage's quorum asks for."""
    assert stage.aggregation
    *of_members, name = step_names(stage)

    def answer(item: Item, is_last: bool) -> StepRecord | None:
        def ask_on_the_way(call: Call, step: str, message: str, constraint: Constraint | None) -> StepRecord:
            asked = Question(stage, call, step, message, constraint, threads_of(run, stage, call), item=item.number)
            return ask(run, asked, is_last)

        read = _read(run, stage, item)
        answers = [run.logs[step].get(item.number) for step in of_members]
        answered = [record for record in answers if record and record.error is None]
        failed = {c.member: a.error for c, a in zip(stage.calls, answers, strict=True) if a and a.error is not None}
        if read is None or not answered or (failed and len(answered) < stage.quorum):
            return None
        step = merged(stage, item.question, answered, input_texts(read), ask_on_the_way)
        return step.model_copy(update={"degraded": (*step.degraded, *check_quorum(stage, len(answered), failed))})

    return Pass(run, stage, name, stage.aggregation.synthesis, answer, stage.retries, run.items).work()


def _is_needed(run: DatasetRun, stage: StagePlan, call: Call, item: Item) -> bool:
    """Whether a member is asked; of a cascade, one that comes after those who agree is not."""
    if stage.stop is None:
        return True
    before = stage.calls[: stage.calls.index(call)]
    records = [run.logs[f"{stage.id}: {each.member}"].get(item.number) for each in before]
    if not stage.may_miss and any(record and record.error is not None for record in records):
        return False  # the item has failed already
    return not stage.stop.is_met([record.text for record in records if record and record.error is None])


def _read(run: DatasetRun, stage: StagePlan, item: Item) -> dict[str, StepRecord] | None:
    """The last step of each stage that `stage` reads; `None` where one has no answer to this item."""
    by_id = {planned.id: planned for planned in run.plan.stages}
    found: dict[str, StepRecord] = {}
    for source in stage.inputs:
        record = run.logs[step_names(by_id[source])[-1]].get(item.number)
        if record is None or record.error is not None:
            return None
        found[source] = record
    return found
