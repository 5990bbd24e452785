"""The answers of a stage's members become its one answer, as the stage's aggregation says."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from llm_core.aggregation import VOTES, concat, render_template, summary_message, synthesis_message
from llm_core.call_params import Constraint
from llm_core.cascade import cascade
from llm_core.constraints import grammar_constraint
from llm_core.custom_aggregation import merge_by
from llm_core.errors import AggregationError, ContextOverflow
from llm_core.field_vote import Ballot, field_vote
from llm_core.mixture import ALL_ANSWERS, all_answers
from llm_core.model_step import handed_on, written_texts
from llm_core.plan import AggregationPlan, Call, StagePlan
from llm_core.ranking import (
    ballot,
    borda,
    judge_grammar,
    judge_message,
    judged,
    ranking_grammar,
    ranking_message,
    read_ranking,
)
from llm_core.session_records import StepRecord
from llm_core.votes import Merged, majority_vote, most_similar

Ask = Callable[[Call, str, str, Constraint | None], StepRecord]
"""Asks a model in a step, by name, a message; the answer is held to a constraint, which may not be the call's own."""


def check_quorum(stage: StagePlan, n_answered: int, missing: Mapping[str, str]) -> tuple[str, ...]:
    """What is to be said of a stage where some members gave no answer; nothing where all did.

    Args:
        missing: why, by member that was asked and has not answered.

    Raises:
        AggregationError: too few have answered.
    """
    if not missing:
        return ()
    why = "; ".join(f"{member}: {reason}" for member, reason in missing.items())
    n_asked = n_answered + len(missing)
    said = f"{stage.id}: {n_answered} of {n_asked} members answered, and its quorum is {stage.quorum}: {why}"
    if n_answered < stage.quorum:
        raise AggregationError(said)
    return (said,)


def merged(
    stage: StagePlan, question: str, members: Sequence[StepRecord], texts: Mapping[str, str], ask: Ask
) -> StepRecord:
    """The one answer of a stage, with its candidates and the evidence for it.

    Args:
        texts: what the stages that this one reads hand on.

    Raises:
        AggregationError: the answers cannot be merged.
    """
    step, evidence = _Merging(stage, question, members, texts, ask).merge()
    chosen = next((member for member in members if member.text == step.text), None)
    if chosen and step.parsed is None:
        step = step.model_copy(update={"parsed": chosen.parsed, "truncated": chosen.truncated})
    if stage.aggregation and stage.aggregation.kind == "field_vote":
        step = step.model_copy(update={"parsed": json.loads(step.text)})
    answers = {step.member or "": step.text for step in members}
    assert stage.aggregation
    return step.model_copy(
        update={
            "kind": "aggregation",
            "position": len(stage.calls),
            "member": None,
            "output": handed_on(stage, question, texts, step.text),
            "aggregation": {"kind": stage.aggregation.kind, **evidence, "candidates": answers},
        }
    )


class _Merging:
    def __init__(
        self, stage: StagePlan, question: str, members: Sequence[StepRecord], texts: Mapping[str, str], ask: Ask
    ) -> None:
        assert stage.aggregation
        self.stage, self.plan, self.question = stage, stage.aggregation, question
        self.texts = written_texts(stage, texts)
        self.answers = {step.member or "": step.text for step in members}
        self.tokens = {step.member or "": _tokens(step) for step in members}
        self.ballots = {step.member or "": Ballot(step.text, step.logprobs) for step in members}
        self.name = f"{stage.id}: {self.plan.kind}"
        self._ask = ask
        self._started = datetime.now(UTC)
        self._replies: dict[str, StepRecord] = {}
        """Of models that were asked on the way, by step."""

    def merge(self) -> tuple[StepRecord, dict[str, Any]]:
        """The answer's record, and the evidence."""
        plan = self.plan
        if plan.synthesis and plan.kind != "judge":
            return self._written(plan.synthesis)
        if plan.kind == "judge":
            return self._judged(plan)
        merged = self._chosen(plan)
        evidence = {**merged.evidence, "agreed": list(merged.agreed)} if merged.evidence else {}
        return self._plain(merged.text), evidence | self._said()

    def _chosen(self, plan: AggregationPlan) -> Merged:
        if plan.kind in VOTES:
            return majority_vote(self.answers, plan.pattern, dict(plan.weights))
        if plan.stop:
            merged = cascade([call.member for call in self.stage.calls], self.answers, plan.stop)
            tokens = {member: self.tokens[member] for member in merged.evidence["agreement"]}
            return replace(merged, evidence={**merged.evidence, "tokens": tokens})
        if plan.kind == "similarity":
            return most_similar(self.answers)
        if plan.kind == "field_vote":
            constraint = self.stage.calls[0].constraint
            return field_vote(self.ballots, (constraint and constraint.schema) or "true")
        if plan.kind == "ranked":
            return borda(self.answers, {call.member: self._ranking(call) for call in self.stage.calls})
        if plan.kind == "custom_template":
            return Merged(self._rendered())
        if plan.kind == "concat":
            return Merged(concat(self.answers))
        if plan.kind == ALL_ANSWERS:
            return Merged(all_answers(self.answers))
        return merge_by(plan.kind, self.question, self.answers)

    def _ranking(self, ranker: Call) -> tuple[str, ...]:
        """The other members, as `ranker` ranks them."""
        if ranker.member not in self.answers:
            return ()
        letters = ballot(list(self.answers), ranker.member)
        listed = {letter: self.answers[member] for letter, member in letters.items()}
        message = ranking_message(self.question, listed, self.plan.instructions)
        name = f"{self.stage.id}: ranked by {ranker.member}"
        reply = self._on_the_way(ranker, name, message, _held_to(ranking_grammar(list(letters)), ranker))
        return tuple(letters[letter] for letter in read_ranking(reply.text, list(letters)))

    def _judged(self, plan: AggregationPlan) -> tuple[StepRecord, dict[str, Any]]:
        assert plan.synthesis
        message = judge_message(self.question, self.answers, plan.synthesis.instructions)
        held_to = _held_to(judge_grammar(len(self.answers)), plan.synthesis)
        reply = self._ask(plan.synthesis, self.name, message, held_to)
        merged = judged(self.answers, reply.text)
        evidence = {**merged.evidence, "agreed": list(merged.agreed), "replies": {self.name: reply.text}}
        return reply.model_copy(update={"text": merged.text}), evidence

    def _written(self, writer: Call) -> tuple[StepRecord, dict[str, Any]]:
        if self.plan.kind == "custom_template":
            return self._ask(writer, self.name, self._rendered(), writer.constraint), {}
        message = synthesis_message(self.question, self.answers, writer.instructions)
        try:
            return self._ask(writer, self.name, message, writer.constraint), {}
        except ContextOverflow:
            if not self.plan.summarise:
                raise
        summaries = {member: self._summary(writer, member, text) for member, text in self.answers.items()}
        message = synthesis_message(self.question, summaries, writer.instructions)
        answer = self._ask(writer, self.name, message, writer.constraint)
        return answer, {"summaries": summaries} | self._said()

    def _summary(self, writer: Call, member: str, text: str) -> str:
        message = summary_message(self.question, text)
        return self._on_the_way(writer, f"{self.stage.id}: summary of {member}", message, None).text

    def _on_the_way(self, call: Call, name: str, message: str, constraint: Constraint | None) -> StepRecord:
        self._replies[name] = self._ask(call, name, message, constraint)
        return self._replies[name]

    def _said(self) -> dict[str, Any]:
        """What was said on the way to the answer, and what it cost."""
        if not self._replies:
            return {}
        replies = self._replies.values()
        return {
            "replies": {name: reply.text for name, reply in self._replies.items()},
            "reply_tokens": sum(reply.completion_tokens or 0 for reply in replies),
        }

    def _rendered(self) -> str:
        template = self.plan.template or ""
        return render_template(template, question=self.question, inputs=self.texts, answers=self.answers)

    def _plain(self, text: str) -> StepRecord:
        return StepRecord(
            id=f"{self.stage.number} {self.name}",
            number=self.stage.number,
            stage=self.stage.id,
            text=text,
            started=self._started,
            ended=datetime.now(UTC),
        )


def _tokens(step: StepRecord) -> dict[str, int]:
    """What an answer took; one that `cache` had took none."""
    spent = (0, 0) if step.reused_from else (step.prompt_tokens or 0, step.completion_tokens or 0)
    return dict(zip(("prompt", "completion"), spent, strict=True))


def _held_to(grammar: str, call: Call) -> Constraint:
    """A reply that can be read, after as much thought as a model that reasons wants."""
    return grammar_constraint(grammar, think=call.strip_reasoning)
