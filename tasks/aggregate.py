"""The answers of a multi-model stage become one."""

from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from llm_core.aggregation import concat, majority_vote, render_template, synthesis_message
from llm_core.plan import AggregationPlan, StagePlan
from llm_core.prompts import stage_output
from llm_core.session import StepRecord, step_files
from tasks.generate import ask, crashed
from tasks.record import record
from tasks.run import Run


@task(cache_policy=NO_CACHE, retry_condition_fn=crashed)
def aggregate(run: Run, stage: StagePlan, members: list[StepRecord], inputs: dict[str, StepRecord]) -> StepRecord:
    """Merge `members`' answers as the stage says; candidates and evidence are kept beside the answer."""
    assert stage.aggregation
    answers = {step.member or "": step.text for step in members}
    texts = {source: step.output or step.text for source, step in inputs.items()}
    merged, evidence = _merge(run, stage, stage.aggregation, answers, texts)
    step = merged.model_copy(
        update={
            "kind": "aggregation",
            "position": len(members),
            "member": None,
            "output": stage_output(stage.output_mode, run.question, texts, merged.text),
            "aggregation": {"kind": stage.aggregation.kind, **evidence, "candidates": answers},
        }
    )
    record(run, step, step_files(stage.number, list(answers), aggregated=True)[None])
    return step


def _merge(
    run: Run, stage: StagePlan, plan: AggregationPlan, answers: dict[str, str], inputs: dict[str, str]
) -> tuple[StepRecord, dict[str, Any]]:
    started = datetime.now(UTC)
    step = f"{stage.id}: {plan.kind}"
    evidence: dict[str, Any] = {}
    if plan.kind == "synthesis":
        assert plan.synthesis
        message = synthesis_message(run.question, answers, plan.synthesis.instructions)
        return ask(run, stage, plan.synthesis, step, message, _threads(run, stage)), {}
    if plan.kind == "custom_template":
        text = render_template(plan.template or "", question=run.question, inputs=inputs, answers=answers)
        if plan.synthesis:
            return ask(run, stage, plan.synthesis, step, text, _threads(run, stage)), {}
    elif plan.kind == "majority_vote":
        text, counts = majority_vote(answers)
        evidence = {"counts": counts}
    else:
        text = concat(answers)
    plain = StepRecord(
        id=f"{stage.number} {step}",
        number=stage.number,
        stage=stage.id,
        text=text,
        started=started,
        ended=datetime.now(UTC),
    )
    return plain, evidence


def _threads(run: Run, stage: StagePlan) -> int:
    """Of the synthesis model, which decodes when all members are done; its placement comes last."""
    return run.stage(stage.id).placements[-1].threads
