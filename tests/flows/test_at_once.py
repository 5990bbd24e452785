"""Many runs at one time in one process: they take turns, and none takes from another what it needs."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from flows.own_thread import held_in_own_thread
from flows.pipeline import compile_flow
from flows.result import PipelineResult
from llm_core.machine import budget, read_machine
from llm_core.machine_lock import machine_lock
from llm_core.pipeline import load_pipeline
from llm_core.session_files import list_sessions, load_steps
from llm_core.session_records import SessionRecord
from llm_core.settings import Settings
from tasks.run import Silent, progress
from tests.conftest import REPOSITORY, Project

N_RUNS = 50
HANG_S = 240.0
MODELS = "models: {small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 2}}}"
PIPELINE = "base_pipeline: {execution_mode: persistent, stages: [{id: answer, model: small}]}"


class Waiting(Silent):
    """Knows when a run has been told to wait for another one."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def say(self, line: str) -> None:
        if line.startswith("waiting for process"):
            self.told.set()


@pytest.fixture
def small_project(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "small.gguf")
    return project


@contextmanager
def machine_in_use() -> Iterator[None]:
    """As if another run had this machine."""
    settings = Settings()
    devices = budget(read_machine(), settings.limits)
    with machine_lock(settings.cache_folder / "locks", devices, lambda line: None):
        yield


async def start(question: str) -> "asyncio.Task[PipelineResult]":
    """A run that has come as far as to wait for the machine; one after another, as Prefect's SQLite wants it."""
    waiting = Waiting()
    progress.set(waiting)
    flow = compile_flow(load_pipeline(Settings().pipeline_file))
    run: asyncio.Task[PipelineResult] = asyncio.create_task(flow(question=question))
    while not waiting.told.is_set() and not run.done():
        await asyncio.sleep(0.01)
    return run


@pytest.mark.usefixtures("prefect_server", "clean_pools")
async def test_fifty_runs_that_wait_for_one_machine_leave_fifty_complete_sessions(small_project: Project) -> None:
    questions = [f"What is {n} and one?" for n in range(N_RUNS)]
    async with asyncio.timeout(HANG_S):
        with machine_in_use():
            runs = [await start(question) for question in questions]
        results = await asyncio.gather(*runs)
    progress.set(Silent())

    sessions = [session for session in list_sessions(small_project.sessions) if isinstance(session, SessionRecord)]
    assert [session.id for session in sessions] == [f"session_{n:03}" for n in range(1, N_RUNS + 1)]
    assert {session.status for session in sessions} == {"completed"}
    assert {(s.id, s.question) for s in sessions} == {
        (r.session_id, q) for r, q in zip(results, questions, strict=True)
    }
    answers = {result.session_id: result.answer for result in results}
    for session in sessions:
        folder = small_project.sessions / session.id
        assert {path.name for path in folder.iterdir()} == {
            "session.json",
            "config_snapshot.json",
            "step1.json",
            "final.txt",
        }
        (step,) = load_steps(small_project.sessions, session)
        assert step.text == answers[session.id]
        assert (folder / "final.txt").read_text() == answers[session.id] + "\n"


@pytest.mark.usefixtures("prefect_server", "clean_pools")
def test_ctrl_c_ends_a_run_that_waits_for_another(small_project: Project) -> None:
    command = [sys.executable, "-m", "flows", "run", "What is ice?"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": str(get_current_settings().api.url)}
    with machine_in_use(), subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr
        assert any("waiting for process" in line for line in run.stderr)
        run.send_signal(signal.SIGINT)
        try:
            assert run.wait(30) == 130
        finally:
            run.kill()
    assert list(small_project.sessions.iterdir()) == []


async def test_who_stops_waiting_leaves_nothing_held() -> None:
    free, left = threading.Event(), threading.Event()

    @contextmanager
    def slow() -> Iterator[None]:
        free.wait()
        try:
            yield
        finally:
            left.set()

    async def hold() -> None:
        async with held_in_own_thread(slow()):
            raise AssertionError("nobody waited for it any more")

    waiting = asyncio.create_task(hold())
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    free.set()
    assert left.wait(10)


async def test_what_cannot_be_entered_is_the_error_it_was() -> None:
    @contextmanager
    def refused() -> Iterator[None]:
        raise ValueError("no")
        yield

    with pytest.raises(ValueError, match="no"):
        async with held_in_own_thread(refused()):
            pass


async def test_error_on_leaving_is_not_lost() -> None:
    with pytest.raises(ValueError, match="last"):
        async with held_in_own_thread(contextlib.ExitStack()) as stack:
            stack.callback(lambda: int("last"))
