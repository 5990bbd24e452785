"""What a retried run takes over from its earlier try: all of it, or what was not edited since."""

from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import SessionError
from llm_core.plan import Call, Plan, StagePlan
from llm_core.retry import retry_branch
from llm_core.session import Session
from llm_core.session_records import Branch, StepRecord

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MODELS = {"a": {"sha256": "aa", "mmproj": None}, "b": {"sha256": "bb", "mmproj": {"sha256": "ee"}}}


def stage(number: int, id: str, model: str, *inputs: str) -> StagePlan:
    call = Call(model, model, LoadParams(f"/models/{model}.gguf", 512), SamplingParams())
    return StagePlan(id, number, inputs, (call,), "answer_only", None, 0)


# `facts` and `tone` both read `draft`; `final` reads them.
STAGES = (
    stage(1, "draft", "a"),
    stage(2, "facts", "a", "draft"),
    stage(3, "tone", "b", "draft"),
    stage(4, "final", "a", "facts", "tone"),
)


def plan(*stages: StagePlan) -> Plan:
    return Plan("base", "auto", stages, "refuse", stages[-1].id)


@pytest.fixture
def earlier(tmp_path: Path) -> Session:
    """A try that answered all but the last stage."""
    snapshot = {"format": 1, "plan": asdict(plan(*STAGES)), "models": MODELS}
    session = Session.create(tmp_path, pipeline="base", question="Why?", execution_mode="auto", snapshot=snapshot)
    for done in STAGES[:3]:
        model = done.calls[0].model
        step = StepRecord(
            id=f"{done.number} {done.id}: {model}",
            number=done.number,
            stage=done.id,
            text="So.",
            started=NOON,
            ended=NOON,
        )
        session.add(step, f"step{done.number}.json")
    return session


def branch(earlier: Session, *stages: StagePlan, models: dict[str, Any] = MODELS) -> Branch | None:
    return retry_branch(earlier.path.parent, earlier.record, plan(*stages), models)


def edited(done: StagePlan) -> StagePlan:
    return replace(done, calls=(replace(done.calls[0], sampling=SamplingParams(max_tokens=9)),))


def test_where_nothing_was_edited_the_session_is_gone_on_with(earlier: Session) -> None:
    assert branch(earlier, *STAGES) is None


def test_stages_before_the_edited_one_are_taken_over(earlier: Session) -> None:
    found = branch(earlier, *STAGES[:3], edited(STAGES[3]))
    assert found
    assert (found.parent, found.from_stage) == ("session_001", "final")
    assert found.carried == {"1 draft: a": "step1.json", "2 facts: a": "step2.json", "3 tone: b": "step3.json"}


def test_what_reads_an_edited_stage_is_asked_again_and_what_does_not_is_not(earlier: Session) -> None:
    found = branch(earlier, STAGES[0], edited(STAGES[1]), *STAGES[2:])
    assert found
    assert (found.from_stage, list(found.carried)) == ("facts", ["1 draft: a", "3 tone: b"])
    nothing = branch(earlier, edited(STAGES[0]), *STAGES[1:])
    assert nothing
    assert (nothing.from_stage, nothing.carried) == ("draft", {})


def test_stage_that_was_put_in_before_others_makes_them_others(earlier: Session) -> None:
    later = tuple(replace(after, number=after.number + 1) for after in STAGES)
    found = branch(earlier, stage(1, "idea", "a"), *later)
    assert found
    assert (found.from_stage, found.carried) == ("idea", {})


@pytest.mark.parametrize("replaced", [{"sha256": "bc", "mmproj": {"sha256": "ee"}}, {"sha256": "bb", "mmproj": None}])
def test_model_whose_file_is_another_makes_its_stages_others(earlier: Session, replaced: dict[str, Any]) -> None:
    found = branch(earlier, *STAGES, models=MODELS | {"b": replaced})
    assert found
    assert (found.from_stage, list(found.carried)) == ("tone", ["1 draft: a", "2 facts: a"])


def test_damaged_snapshot_is_named(earlier: Session) -> None:
    path = earlier.path / "config_snapshot.json"
    path.write_text("{")
    with pytest.raises(SessionError, match=f"^{path}: damaged: "):
        branch(earlier, *STAGES)
