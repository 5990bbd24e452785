"""Sessions of older versions are read; those of newer ones are refused by name and hurt no other."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from llm_core.errors import SessionError
from llm_core.parameters import ModelParams
from llm_core.registry import ModelRegistry
from llm_core.rerun import Changes, plan_rerun
from llm_core.session import Session
from llm_core.session_files import list_sessions, load_session, load_steps
from llm_core.session_history import delete_session, to_prune
from llm_core.session_records import SessionRecord
from llm_core.snapshot import load_snapshot
from tests.conftest import REPOSITORY, Project
from tests.flows.test_cli import assert_refused, gguf_flow

OF_OLD = REPOSITORY / "tests" / "sessions_of_old"
"""One real session of each format that there ever was, as it was written then; never made anew."""
FORMATS = sorted(path.name for path in OF_OLD.iterdir())
ANSWER = "The scientific name for ice is water ice, and it is"
FILES = ("session.json", "step1.json", "config_snapshot.json")


@pytest.fixture(params=FORMATS)
def sessions(request: pytest.FixtureRequest, project: Project) -> Path:
    """The sessions folder of a project with a copy of an old session."""
    shutil.copytree(OF_OLD / request.param / "session_001", project.sessions / "session_001")
    return project.sessions


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_every_format_up_to_now_has_its_example() -> None:
    assert FORMATS == ["format_1"]
    for name in FORMATS:
        written = {json.loads((OF_OLD / name / "session_001" / file).read_text())["format"] for file in FILES}
        assert written == {int(name.removeprefix("format_"))}


def test_old_session_is_listed(sessions: Path) -> None:
    (session,) = list_sessions(sessions)
    assert isinstance(session, SessionRecord)
    assert (session.question, session.status, session.pipeline) == ("What is ice?", "completed", "base")
    listed = gguf_flow("sessions")
    assert listed.stdout.splitlines()[1].split()[:3] == ["session_001", "base", "completed"]


def test_steps_of_an_old_session_are_read(sessions: Path) -> None:
    steps = load_steps(sessions, load_session(sessions, "session_001"))
    assert [(step.id, step.kind) for step in steps] == [
        ("1 draft: a", "answer"),
        ("2 panel: a", "answer"),
        ("2 panel: a_2", "answer"),
        ("2 panel: majority_vote", "aggregation"),
    ]
    assert steps[-1].text == ANSWER


def test_old_session_is_shown(sessions: Path) -> None:
    shown = gguf_flow("sessions", "show", "session_001")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("session_001 · base · completed\n\nQuestion: What is ice?\n\n── 1 draft: a (a)\n")
    assert shown.stdout.endswith(f"── answer\n{ANSWER}\n\n")
    as_json = json.loads(gguf_flow("sessions", "show", "session_001", "--json").stdout)
    assert [step["id"] for step in as_json["steps"]][-1] == "2 panel: majority_vote"


def test_snapshot_of_an_old_session_is_read(sessions: Path) -> None:
    snapshot = load_snapshot(sessions, "session_001")
    assert [(stage.id, stage.type) for stage in snapshot.spec.stages] == [("draft", "single"), ("panel", "multi")]
    assert list(snapshot.registry.available) == ["a"]
    assert snapshot.gone == {"a": "/models/a.gguf: the file is missing"}


def test_old_session_can_be_run_again_from_a_stage(sessions: Path, smollm: Path) -> None:
    path = sessions / "session_001" / "config_snapshot.json"
    path.write_text(path.read_text().replace("/models/a.gguf", str(smollm)))
    today = ModelRegistry(path, path.parent, ModelParams())
    planned = plan_rerun(sessions, "session_001", "panel", Changes(), today, sessions / "cache")
    assert planned.again == {"panel"}
    assert planned.branch.carried == {"1 draft: a": "step1.json"}


def test_old_session_is_pruned(sessions: Path) -> None:
    assert [session.id for session in to_prune(sessions, timedelta(0), keep=0)] == ["session_001"]


def test_old_session_is_deleted(sessions: Path) -> None:
    delete_session(sessions, "session_001")
    assert list(sessions.iterdir()) == []


def test_old_session_is_reopened(sessions: Path) -> None:
    Session.reopen(sessions, "session_001").fail("no more")
    assert load_session(sessions, "session_001").error == "no more"


@pytest.mark.parametrize("file", FILES)
def test_file_without_a_format_is_of_the_first(sessions: Path, file: str) -> None:
    path = sessions / "session_001" / file
    data = json.loads(path.read_text())
    del data["format"]
    path.write_text(json.dumps(data))
    assert load_session(sessions, "session_001").format == 1
    assert [step.format for step in load_steps(sessions, load_session(sessions, "session_001"))] == [1, 1, 1, 1]
    assert load_snapshot(sessions, "session_001").spec.name == "base"


@pytest.mark.parametrize("newer", [2, 99])
def test_newer_session_is_listed_with_the_reason_and_hurts_no_other(sessions: Path, newer: int) -> None:
    shutil.copytree(sessions / "session_001", sessions / "session_002")
    change(sessions / "session_001" / "session.json", format=newer, status="thought about", pipeline=None)
    refused, sound = list_sessions(sessions)
    path = sessions / "session_001" / "session.json"
    assert str(refused) == f"{path}: written by a newer gguf-flow (format {newer}); this one reads up to 1"
    assert isinstance(sound, SessionRecord)
    listed = gguf_flow("sessions")
    assert listed.returncode == 0
    assert "session_002  base      completed" in listed.stdout
    assert f"written by a newer gguf-flow (format {newer})" in " ".join(listed.stdout.split())
    assert (
        Session.create(sessions, pipeline="base", question="?", execution_mode="auto", snapshot={}).record.id
        == "session_003"
    )


def test_newer_session_is_neither_shown_nor_reopened_nor_pruned_and_deleted_only_by_force(sessions: Path) -> None:
    change(sessions / "session_001" / "session.json", format=99)
    reason = "session.json: written by a newer gguf-flow (format 99); this one reads up to 1"
    assert_refused(gguf_flow("sessions", "show", "session_001"), reason)
    assert to_prune(sessions, timedelta(0), keep=0) == []
    for action in (Session.reopen, delete_session):
        with pytest.raises(SessionError, match="written by a newer gguf-flow"):
            action(sessions, "session_001")  # type: ignore[operator]
    delete_session(sessions, "session_001", force=True)
    assert list(sessions.iterdir()) == []


def test_newer_step_is_refused_by_its_file(sessions: Path) -> None:
    change(sessions / "session_001" / "step1.json", format=99, text=None)
    reason = "session_001/step1.json: written by a newer gguf-flow (format 99); this one reads up to 1"
    assert_refused(gguf_flow("sessions", "show", "session_001"), reason)
    assert load_session(sessions, "session_001").status == "completed"


def test_newer_snapshot_is_refused_by_its_file(sessions: Path) -> None:
    change(sessions / "session_001" / "config_snapshot.json", format=99, pipeline="elsewhere")
    with pytest.raises(SessionError) as refused:
        load_snapshot(sessions, "session_001")
    path = sessions / "session_001" / "config_snapshot.json"
    assert str(refused.value) == f"{path}: written by a newer gguf-flow (format 99); this one reads up to 1"


@pytest.mark.parametrize("wrong", ["two", None, [1], 1.5])
def test_format_that_is_no_number_is_damage(sessions: Path, wrong: object) -> None:
    change(sessions / "session_001" / "session.json", format=wrong)
    (damaged,) = list_sessions(sessions)
    assert str(damaged).startswith(f"{sessions}/session_001/session.json: damaged: format: ")
