"""The answers of a stage's members become its one answer, as the stage's aggregation says."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from llm_core.aggregation import concat, majority_vote, render_template, synthesis_message
from llm_core.plan import AggregationPlan, Call, StagePlan
from llm_core.prompts import stage_output
from llm_core.session_records import StepRecord

Ask = Callable[[Call, str, str], StepRecord]
"""Asks a model in a step, by name, a message."""


def merged(
    stage: StagePlan, question: str, members: Sequence[StepRecord], texts: Mapping[str, str], ask: Ask
) -> StepRecord:
    """The one answer of a stage, with its candidates and the evidence for it."""
    assert stage.aggregation
    answers = {step.member or "": step.text for step in members}
    step, evidence = _merge(stage, stage.aggregation, question, answers, texts, ask)
    return step.model_copy(
        update={
            "kind": "aggregation",
            "position": len(members),
            "member": None,
            "output": stage_output(stage.output_mode, question, texts, step.text),
            "aggregation": {"kind": stage.aggregation.kind, **evidence, "candidates": answers},
        }
    )


def _merge(
    stage: StagePlan,
    plan: AggregationPlan,
    question: str,
    answers: Mapping[str, str],
    texts: Mapping[str, str],
    ask: Ask,
) -> tuple[StepRecord, dict[str, Any]]:
    started = datetime.now(UTC)
    step = f"{stage.id}: {plan.kind}"
    evidence: dict[str, Any] = {}
    if plan.kind == "synthesis":
        assert plan.synthesis
        return ask(plan.synthesis, step, synthesis_message(question, answers, plan.synthesis.instructions)), {}
    if plan.kind == "custom_template":
        text = render_template(plan.template or "", question=question, inputs=texts, answers=answers)
        if plan.synthesis:
            return ask(plan.synthesis, step, text), {}
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
