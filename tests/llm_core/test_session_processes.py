"""Sessions written by several processes at once, and by processes that are killed."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_core.errors import SessionError
from llm_core.session import Session
from llm_core.session_files import list_sessions, load_session, load_steps
from llm_core.session_records import SessionRecord
from llm_core.step_log import StepLog
from tests.conftest import REPOSITORY
from tests.llm_core.session_writer import N_ITEMS, STEPS, TEXT


def start_writer(folder: Path, name: str, *n: str) -> "subprocess.Popen[str]":
    """A process that writes as soon as its stdin is closed."""
    command = [sys.executable, "-m", "tests.llm_core.session_writer", str(folder), name, *n]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_ten_processes_at_once_leave_fifty_complete_sessions(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, f"writer {n}", "5") for n in range(10)]
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * 10

    sessions = [session for session in list_sessions(tmp_path) if isinstance(session, SessionRecord)]
    assert [session.id for session in sessions] == [f"session_{n:03}" for n in range(1, 51)]
    questions = [f"writer {writer}.{n}" for writer in range(10) for n in range(5)]
    assert sorted(session.question for session in sessions) == questions
    for session in sessions:
        folder = tmp_path / session.id
        assert session.status == "completed"
        assert {path.name for path in folder.iterdir()} == {
            "session.json",
            "config_snapshot.json",
            "step1.json",
            "step2.json",
            "step3.json",
            "final.txt",
        }
        steps = load_steps(tmp_path, session)
        assert [(step.stage, step.text) for step in steps] == [(stage, f"{session.question} {TEXT}") for stage in STEPS]
        assert (folder / "final.txt").read_text() == f"{session.question} {TEXT}\n"


def kill_while_writing(folder: Path, after_s: float) -> None:
    writer = start_writer(folder, "killed")
    assert writer.stdin
    assert writer.stdout
    writer.stdin.close()
    assert writer.stdout.readline() == "writing\n"
    time.sleep(after_s)
    writer.kill()
    writer.wait()


def finished_files(folder: Path) -> list[Path]:
    """Of all sessions; not the temporary ones, which nobody reads."""
    return [path for path in folder.glob("session_*/*") if not path.name.startswith(".")]


def assert_whole(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".txt":
        assert path.read_text().endswith((f"{TEXT}\n", f"{N_ITEMS} of {N_ITEMS}\n"))
    else:
        *lines, cut_off = path.read_text().split("\n")
        assert [json.loads(line)["item"] for line in lines] == list(range(1, len(lines) + 1))
        log = StepLog(path)
        log.close()
        assert len(log) == len(lines)
        assert path.read_text() == "".join(f"{line}\n" for line in lines), f"{cut_off} was not cut off"


@pytest.mark.parametrize("seed", range(20))
def test_killed_writer_leaves_whole_files_and_every_session_in_the_list(tmp_path: Path, seed: int) -> None:
    kill_while_writing(tmp_path, random.Random(seed).uniform(0.001, 0.2))
    for path in finished_files(tmp_path):
        assert_whole(path)

    listed = list(list_sessions(tmp_path))
    assert len(listed) == len(list(tmp_path.iterdir()))
    *whole, last = listed or [None]
    assert not any(isinstance(session, SessionError) for session in whole), "only the last was being written"
    assert not isinstance(last, SessionError) or "session.json: No such file or directory" in str(last)
    for session in listed:
        if isinstance(session, SessionRecord):
            load_steps(tmp_path, session)
            assert session.status in ("completed", "running" if session is last else "completed")
    new = Session.create(tmp_path, pipeline="base", question="?", execution_mode="auto", snapshot={})
    assert new.record.id == f"session_{len(listed) + 1:03}"
    assert load_session(tmp_path, new.record.id) == new.record


def test_session_that_goes_on_after_a_kill_loses_what_was_half_written(tmp_path: Path) -> None:
    session = Session.create(tmp_path, pipeline="base", question="?", execution_mode="auto", snapshot={})
    for name in (".step1.json.x3b_9dkq", "..writable.aaaaaaaa", "notes.txt", ".hidden", ".note.md"):
        (session.path / name).write_text("{")
    Session.reopen(tmp_path, "session_001")
    kept = {"session.json", "config_snapshot.json", "notes.txt", ".hidden", ".note.md"}
    assert {path.name for path in session.path.iterdir()} == kept
