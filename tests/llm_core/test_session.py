"""Runs on disk: numbers, whole files, and what is made of damaged or tricky ones."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llm_core.atomic_write import write_whole
from llm_core.errors import SessionError
from llm_core.session import Session, check_writable, step_files
from llm_core.session_files import list_sessions, load_session, load_steps
from llm_core.session_records import StepRecord
from tests.conftest import REPOSITORY


def create(folder: Path, question: str = "Why?", **more: Any) -> Session:
    return Session.create(folder, pipeline="base", question=question, execution_mode="auto", snapshot={"a": 1}, **more)


def step(stage: str, number: int = 1, position: int = 0, text: str = "So.") -> StepRecord:
    now = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    id = f"{number} {stage}: m{position}"
    return StepRecord(id=id, number=number, position=position, stage=stage, text=text, started=now, ended=now)


def ids(folder: Path) -> list[str]:
    return [session.id for session in list_sessions(folder) if not isinstance(session, SessionError)]


def test_first_session_is_number_one_and_the_folder_is_made(tmp_path: Path) -> None:
    session = create(tmp_path / "deep" / "sessions")
    assert session.path == tmp_path / "deep" / "sessions" / "session_001"
    assert {path.name for path in session.path.iterdir()} == {"session.json", "config_snapshot.json"}


@pytest.mark.parametrize(
    ("taken", "next_one"),
    [
        (["session_007"], "session_008"),
        (["session_002", "session_001", "session_010"], "session_011"),
        (["session_999"], "session_1000"),
        (["session_1000", "session_999"], "session_1001"),
        (["session_old", "notes", "session_"], "session_001"),
    ],
)
def test_next_number_follows_the_highest_taken(tmp_path: Path, taken: list[str], next_one: str) -> None:
    for name in taken:
        (tmp_path / name).mkdir()
    assert create(tmp_path).record.id == next_one


def test_number_of_a_deleted_session_in_between_is_not_taken_again(tmp_path: Path) -> None:
    for name in ("session_001", "session_003"):
        (tmp_path / name).mkdir()
    assert create(tmp_path).record.id == "session_004"


def test_twenty_threads_take_twenty_numbers(tmp_path: Path) -> None:
    together = threading.Barrier(20)

    def take(n: int) -> str:
        together.wait()
        return create(tmp_path, f"question {n}").record.id

    with ThreadPoolExecutor(20) as threads:
        taken = list(threads.map(take, range(20)))
    assert sorted(taken) == [f"session_{n:03}" for n in range(1, 21)]
    assert {load_session(tmp_path, id).question for id in taken} == {f"question {n}" for n in range(20)}


def test_processes_at_once_take_numbers_of_their_own(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from llm_core.session import Session; sys.stdin.read\n"
        "for n in range(10):\n"
        "    Session.create(pathlib.Path(sys.argv[1]), pipeline='p', question='q', execution_mode='auto', snapshot={})"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.stdin
        process.stdin.close()
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert ids(tmp_path) == [f"session_{n:03}" for n in range(1, 41)]


def test_session_comes_back_as_it_was_written(tmp_path: Path) -> None:
    session = create(tmp_path, "Où? 🙂", flow_run_id="run-1")
    session.add(step("draft"), "step1.json")
    session.complete("Here.")
    loaded = load_session(tmp_path, "session_001")
    assert loaded == session.record
    assert (loaded.question, loaded.parent, loaded.flow_run_id) == ("Où? 🙂", None, "run-1")
    assert (loaded.status, loaded.files) == ("completed", {"1 draft: m0": "step1.json"})
    assert (session.path / "final.txt").read_text() == "Here.\n"


def test_steps_come_back_by_stage_and_place_whatever_order_they_finished_in(tmp_path: Path) -> None:
    session = create(tmp_path)
    for number, position, name in ((2, 1, "b.json"), (1, 0, "a.json"), (2, 2, "c.json"), (2, 0, "d.json")):
        session.add(step("s", number, position), name)
    steps = load_steps(tmp_path, load_session(tmp_path, "session_001"))
    assert [(s.number, s.position) for s in steps] == [(1, 0), (2, 0), (2, 1), (2, 2)]


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_run_that_ends_early_keeps_its_finished_steps_and_says_why(tmp_path: Path, status: Any) -> None:
    session = create(tmp_path)
    session.add(step("draft"), "step1.json")
    session.fail("the model crashed", status)
    loaded = load_session(tmp_path, "session_001")
    assert (loaded.status, loaded.error) == (status, "the model crashed")
    assert loaded.ended is not None
    assert [s.text for s in load_steps(tmp_path, loaded)] == ["So."]
    assert not (session.path / "final.txt").exists()


def test_run_under_way_is_running_and_has_no_end(tmp_path: Path) -> None:
    create(tmp_path)
    loaded = load_session(tmp_path, "session_001")
    assert (loaded.status, loaded.ended, loaded.files) == ("running", None, {})


def test_who_reads_while_a_file_is_written_anew_reads_the_whole_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old " * 1000)
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == "old " * 1000
    assert path.read_text() == "new"


def test_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new " * 100_000 + "\ud800")  # a lone surrogate has no UTF-8
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_writing_leaves_no_temporary_files(tmp_path: Path) -> None:
    session = create(tmp_path)
    session.add(step("draft"), "step1.json")
    session.complete("Here.")
    names = {path.name for path in session.path.iterdir()}
    assert names == {"session.json", "config_snapshot.json", "step1.json", "final.txt"}


@pytest.mark.parametrize("action", [create, check_writable])
def test_folder_that_cannot_be_written_is_refused_with_the_remedy(tmp_path: Path, action: Any) -> None:
    (tmp_path / "sessions").write_text("a file where the folder should be")
    with pytest.raises(SessionError) as refusal:
        action(tmp_path / "sessions")
    assert str(refusal.value) == (
        f"sessions folder {tmp_path}/sessions cannot be written: File exists; set GGUF_FLOW_SESSIONS_DIR"
    )


def test_check_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "sessions")
    assert list((tmp_path / "sessions").iterdir()) == []


def test_sessions_are_listed_by_number_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("session_1000", "session_999"):
        create(tmp_path / "one").path.rename(tmp_path / name)
    (tmp_path / "session_backup").mkdir()
    (tmp_path / "session_005").write_text("a file")
    assert [type(entry).__name__ for entry in list_sessions(tmp_path)] == ["SessionRecord", "SessionRecord"]
    assert ids(tmp_path) == ["session_999", "session_1000"]


def test_folder_that_is_not_there_has_no_sessions(tmp_path: Path) -> None:
    assert list(list_sessions(tmp_path / "absent")) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        ("", "damaged: Invalid JSON: EOF while parsing a value"),
        ('{"id": "session_001", "pipel', "damaged: Invalid JSON: EOF while parsing a string"),
        ('{"id": "session_001"}', "damaged: pipeline: this key is required"),
        ("[]", "damaged: "),
    ],
)
def test_damaged_session_is_listed_as_damaged_among_the_sound_ones(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    for _ in range(3):
        create(tmp_path)
    file = tmp_path / "session_002" / "session.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    damaged = list(list_sessions(tmp_path))[1]
    assert isinstance(damaged, SessionError)
    assert str(damaged).startswith(f"{file}: {problem}")
    assert ids(tmp_path) == ["session_001", "session_003"]


def test_damaged_step_is_refused_by_its_name(tmp_path: Path) -> None:
    session = create(tmp_path)
    session.add(step("draft"), "step1.json")
    (session.path / "step1.json").write_text("{")
    with pytest.raises(SessionError, match=r"session_001/step1\.json: damaged: "):
        load_steps(tmp_path, session.record)


def test_session_whose_folder_was_renamed_is_known_by_its_new_name(tmp_path: Path) -> None:
    session = create(tmp_path)
    session.add(step("draft"), "step1.json")
    session.path.rename(tmp_path / "session_041")
    loaded = load_session(tmp_path, "session_041")
    assert loaded.id == "session_041"
    assert [s.text for s in load_steps(tmp_path, loaded)] == ["So."]


@pytest.mark.parametrize(
    "id",
    [
        "session_002",
        "../sessions/session_001",
        "session_001/",
        "session_001/.",
        "./session_001",
        "session_001\n",
        "",
        ".",
    ],
)
def test_id_that_is_no_session_of_this_folder_is_refused(tmp_path: Path, id: str) -> None:
    folder = tmp_path / "sessions"
    create(folder)
    with pytest.raises(SessionError) as refusal:
        load_session(folder, id)
    assert str(refusal.value) == f"no session '{id}' in {folder}; `gguf-flow sessions` lists them"


@pytest.mark.parametrize(
    ("members", "files"),
    [
        (["a", "b"], {"a": "step3_a.json", "b": "step3_b.json"}),
        (["qwen 3/4b", "qwen 3:4b"], {"qwen 3/4b": "step3_qwen_3_4b.json", "qwen 3:4b": "step3_qwen_3_4b_2.json"}),
        (["Model", "model"], {"Model": "step3_Model.json", "model": "step3_model_2.json"}),
        (["m", "m_2", "m 2"], {"m": "step3_m.json", "m_2": "step3_m_2.json", "m 2": "step3_m_2_2.json"}),
        (["aggregation"], {"aggregation": "step3_aggregation_2.json"}),
        (["../../etc"], {"../../etc": "step3_etc.json"}),
        (["模型", "🙂"], {"模型": "step3_model.json", "🙂": "step3_model_2.json"}),
        (["x" * 300], {"x" * 300: f"step3_{'x' * 80}.json"}),
    ],
)
def test_each_member_of_a_stage_has_a_file_of_its_own(members: list[str], files: dict[str, str]) -> None:
    aggregation: dict[str | None, str] = {None: "step3_aggregation.json"}
    assert step_files(3, members, aggregated=True) == aggregation | files


def test_stage_of_one_model_has_one_plain_file() -> None:
    assert step_files(1, ["llama3"], aggregated=False) == {"llama3": "step1.json"}
