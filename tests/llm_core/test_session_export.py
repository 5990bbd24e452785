"""A session as one file to give away."""

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm_core.errors import InputError, SessionError
from llm_core.session import Session
from llm_core.session_export import export_session
from llm_core.session_records import StepRecord
from llm_core.session_report import step_markdown

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def step(text: str, **more: object) -> StepRecord:
    fields = {"id": "1 draft: a", "number": 1, "stage": "draft", "text": text, "started": NOON, "ended": NOON}
    return StepRecord.model_validate(fields | more)


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    folder = tmp_path / "sessions"
    session = Session.create(folder, pipeline="base", question="Why?", execution_mode="auto", snapshot={})
    session.add(step("Because of\nthe light.", model="a", completion_tokens=5), "step1.json")
    session.complete("Because.")
    return folder


def test_report_has_question_answer_and_every_step(sessions: Path, tmp_path: Path) -> None:
    export_session(sessions, "session_001", tmp_path / "out" / "report.md")
    parts = (tmp_path / "out" / "report.md").read_text().split("\n\n")
    assert parts[:2] == ["# session_001", "> Why?"]
    assert parts[3:7] == ["## Answer", "> Because.", "## 1 draft: a", "> Because of\n> the light."]
    assert "| completion_tokens | 5 |" in parts[-1]


def test_zip_has_every_file_of_the_session_and_the_report(sessions: Path, tmp_path: Path) -> None:
    (sessions / "session_001" / ".session.json.x1").write_text("half")
    (sessions / "session_001" / "elsewhere").symlink_to("/etc/hostname")
    export_session(sessions, "session_001", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {
            f"session_001/{name}"
            for name in ("report.md", "config_snapshot.json", "final.txt", "session.json", "step1.json")
        }
        assert archive.read("session_001/step1.json") == (sessions / "session_001" / "step1.json").read_bytes()


def test_file_that_is_there_is_kept(sessions: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    target.write_text("mine")
    with pytest.raises(InputError, match="is there already; choose another name with --output"):
        export_session(sessions, "session_001", target)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_other_kinds_of_file_are_refused(sessions: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"a session is exported as \.md or \.zip"):
        export_session(sessions, "session_001", tmp_path / name)


def test_place_that_cannot_be_written_is_named(sessions: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/a\.zip: cannot be written: "):
        export_session(sessions, "session_001", tmp_path / "file" / "a.zip")


def test_session_that_is_not_there_writes_nothing(sessions: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError):
        export_session(sessions, "session_002", tmp_path / "a.md")
    assert not (tmp_path / "a.md").exists()


def test_prompt_with_a_fence_of_its_own_stays_within_its_block() -> None:
    assert step_markdown(step("So.", prompt="`````\nx")).endswith("``````text\n`````\nx\n``````")
