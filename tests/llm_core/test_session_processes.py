"""Sessions written by several processes at once, and by processes that are killed."""

import subprocess
import sys
from pathlib import Path

from llm_core.session import list_sessions, load_steps
from llm_core.session_records import SessionRecord
from tests.conftest import REPOSITORY
from tests.llm_core.session_writer import STEPS, TEXT


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
