"""What differs between two sessions that were written by hand."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from flows.diff_view import diff_markdown, diff_text
from llm_core.errors import SessionError
from llm_core.session import Session
from llm_core.session_diff import Change, SessionDiff, diff_sessions
from llm_core.session_records import StepRecord

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
STAGES = [{"id": "draft", "members": [{"model": "a"}]}, {"id": "final", "members": [{"model": "b"}]}]
SNAPSHOT: dict[str, Any] = {
    "pipeline": {"name": "base", "retries": 1, "stages": STAGES},
    "models": {"a": {"sha256": "11", "size_bytes": 7, "entry": {"params": {"temperature": 0.7}}}},
    "versions": {"prefect": "3.8.8"},
}


def write_session(folder: Path, snapshot: dict[str, Any], *steps: tuple[str, str, str]) -> None:
    """Steps are (stage, member, text)."""
    session = Session.create(folder, pipeline="base", question="Why?", execution_mode="auto", snapshot=snapshot)
    for number, (stage, member, text) in enumerate(steps, 1):
        step = StepRecord(
            id=f"{number} {stage}: {member}", number=number, stage=stage, text=text, started=NOON, ended=NOON
        )
        session.add(step, f"step{number}.json")


def compared(tmp_path: Path) -> SessionDiff:
    return diff_sessions(tmp_path, "session_001", "session_002")


def test_what_was_set_otherwise_is_named_by_its_key(tmp_path: Path) -> None:
    stages = [{**STAGES[1], "instructions": "Be brief."}, STAGES[0]]
    models = {"a": {"sha256": "22", "size_bytes": 7, "entry": {"params": {"temperature": 0.2}}}}
    write_session(tmp_path, SNAPSHOT)
    write_session(tmp_path, SNAPSHOT | {"pipeline": {"name": "base", "stages": stages}, "models": models})
    assert compared(tmp_path).changes == (
        Change("models.a.params.temperature", 0.7, 0.2),
        Change("models.a.sha256", "11", "22"),
        Change("pipeline.retries", 1, None),
        Change("stages.final.instructions", None, "Be brief."),
    )


def test_steps_are_compared_by_their_place_whatever_model_answered(tmp_path: Path) -> None:
    write_session(tmp_path, SNAPSHOT, ("draft", "a", "Ice is cold."), ("final", "b", "It is so."))
    write_session(tmp_path, SNAPSHOT, ("draft", "c", "Ice is wet."), ("final", "b", "It is so."))
    draft, final = compared(tmp_path).steps
    assert (draft.before, draft.after, draft.is_same) == ("1 draft: a", "1 draft: c", False)
    assert [(piece.kind, piece.text) for piece in draft.pieces] == [
        ("same", "Ice is"),
        ("gone", " cold."),
        ("new", " wet."),
    ]
    assert final.is_same


def test_step_that_only_one_of_them_has_is_there_too(tmp_path: Path) -> None:
    write_session(tmp_path, SNAPSHOT, ("draft", "a", "Ice."), ("final", "b", "So."))
    write_session(tmp_path, SNAPSHOT, ("draft", "a", "Ice."))
    assert [(step.before, step.after) for step in compared(tmp_path).steps] == [
        ("1 draft: a", "1 draft: a"),
        ("2 final: b", None),
    ]


def test_session_without_its_snapshot_is_refused_by_its_name(tmp_path: Path) -> None:
    write_session(tmp_path, SNAPSHOT)
    write_session(tmp_path, SNAPSHOT)
    (tmp_path / "session_002" / "config_snapshot.json").unlink()
    with pytest.raises(SessionError, match=r"session_002/config_snapshot.json: No such file"):
        compared(tmp_path)


@pytest.fixture
def small_diff(tmp_path: Path) -> SessionDiff:
    stages = [STAGES[0], {**STAGES[1], "samples": 3}]
    write_session(tmp_path, SNAPSHOT, ("draft", "a", "Ice is cold.\n\nSo *it* goes."), ("final", "b", "So."))
    write_session(
        tmp_path,
        SNAPSHOT | {"pipeline": {"name": "base", "retries": 1, "stages": stages}},
        ("draft", "a", "Ice is wet.\n\nSo it *goes* on."),
        ("final", "b", "So."),
    )
    return compared(tmp_path)


def test_terminal_without_colour_has_marks(small_diff: SessionDiff) -> None:
    assert diff_text(small_diff, colour=False).plain.splitlines() == [
        "session_001 → session_002",
        "stages.final.samples: [-(not set)-] {+3+}",
        "",
        "── 1 draft: a",
        "Ice is [-cold.-] {+wet.+}",
        "",
        "So [-*it* goes.-] {+it *goes* on.+}",
        "",
        "The same answer: 2 final: b",
    ]


def test_terminal_with_colour_strikes_out_what_is_gone(small_diff: SessionDiff) -> None:
    text = diff_text(small_diff, colour=True)
    assert "Ice is cold. wet." in text.plain
    styled = {styled_text(text, span.start, span.end): str(span.style) for span in text.spans}
    assert (styled["cold."], styled["wet."]) == ("red strike", "green")


def styled_text(text: Text, start: int, end: int) -> str:
    return text.plain[start:end]


def test_markdown_keeps_special_characters_and_emphasises_line_by_line(small_diff: SessionDiff) -> None:
    assert diff_markdown(small_diff).split("\n\n") == [
        "# session_001 → session_002",
        "- `stages.final.samples`: ~~(not set)~~ **3**",
        "## 1 draft: a",
        "Ice is ~~cold.~~ **wet.**",
        r"So ~~\*it\* goes.~~ **it \*goes\* on.**",
        "The same answer: 2 final: b",
    ]
