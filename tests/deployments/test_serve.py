"""`gguf-flow serve` as a real process: a real Prefect server, a real model host, real runs."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.serve import read_pipelines
from llm_core.host_address import read_address
from llm_core.settings import Settings
from tests.conftest import REPOSITORY, Project
from tests.deployments.conftest import MODELS, PIPELINES, serve_pipelines
from tests.deployments.served import Served


@dataclass(frozen=True)
class Killed:
    """A `serve` that was killed together with the process of its run."""

    served: Served
    run_id: str
    left: list[psutil.Process]
    """Which of its processes outlived it, but for the Prefect server: the next `serve` uses that."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Iterator[Killed]:
    served = serve_pipelines(tmp_path_factory.mktemp("killed"), smollm)
    below: list[psutil.Process] = []
    try:
        served.wait_for(lambda: "serving batch/batch" in served.said)
        run_id = begin_final(served)
        below = psutil.Process(served.process.pid).children(recursive=True)
        server = next(p for p in below if "prefect" in p.cmdline() and "server" in p.cmdline())
        models_and_run = [process for process in below if process != server]
        flow_process = served.flow_process(run_id)
        served.process.kill()
        flow_process.kill()
        served.process.wait()
        yield Killed(served, run_id, psutil.wait_procs(models_and_run, timeout=15)[1])
    finally:
        served.process.kill()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def test_serve_that_is_killed_takes_its_models_along(killed: Killed) -> None:
    assert killed.left == []


def test_pipelines_that_are_right_are_served_and_the_wrong_one_is_named(served: Served) -> None:
    for name in ("prune/prune", "base/base", "absent/absent", "every-second/every-second, 1 schedule", "batch/batch"):
        assert f"serving {name}\n" in served.said
    assert "pipelines.wrong: stages[0]: unknown key 'aggregatoin'; did you mean 'aggregation'?" in served.said
    assert "serving wrong" not in served.said
    assert "absent cannot run yet: " in served.said


def test_addresses_of_ui_and_host_are_said(served: Served) -> None:
    assert f"Prefect UI: http://127.0.0.1:{served.port}\n" in served.said
    assert "model host: http://127.0.0.1:" in served.said
    assert "Prefect" in httpx.get(f"http://127.0.0.1:{served.port}/").text


def test_three_runs_in_a_row_load_the_model_once(served: Served) -> None:
    before = served.load_count()
    counts = []
    for _ in range(3):
        run = served.run("base", question="What is ice?")
        assert run["state_type"] == "COMPLETED", served.said
        counts.append(served.load_count() - before)
    assert counts[0] == counts[1] == counts[2] <= 1


def test_other_programs_run_a_deployment_once_per_idempotency_key(served: Served) -> None:
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{served.port}/api"}):
        asked = {"parameters": {"question": "What is ice?"}, "idempotency_key": "ticket-4711"}
        first, second = (run_deployment("base/base", **asked) for _ in range(2))
        assert first.id == second.id
        result = first.state.result()
    assert result.answer + "\n" == (served.session_of(str(first.id)) / "final.txt").read_text()


def test_run_of_a_pipeline_whose_model_is_absent_says_so(served: Served) -> None:
    run = served.run("absent", question="What is ice?")
    assert run["state_type"] == "FAILED"
    assert "model 'gone' of stage 'a' is not usable" in run["state"]["message"]


def test_old_sessions_are_pruned_by_a_deployment(served: Served) -> None:
    kept = served.session_of(served.run("base", question="Name a colour.")["id"])
    assert served.run("prune", older_than="1h", keep=0)["state_type"] == "COMPLETED", served.said
    assert kept.is_dir()
    refused = served.run("prune", older_than="soon")
    assert refused["state_type"] == "FAILED"
    assert "'soon' is no age; write it like 90m, 24h, 30d or 2w" in refused["state"]["message"]


def test_dataset_is_a_deployment_too(served: Served) -> None:
    path = served.project.path / "q.jsonl"
    path.write_text('{"question": "What is ice?"}\n{"question": "What is rain?"}\n')
    run = served.run("batch", dataset=str(path))
    assert run["state_type"] == "COMPLETED", served.said


def test_cron_fires_within_its_minute(served: Served) -> None:
    tick = """  tick:
    schedule: {cron: '* * * * *', parameters: {question: 'What is ice?'}}
    stages: [{id: a, model: small}]
"""
    served.project.pipeline(PIPELINES + tick)
    try:
        served.wait_for(lambda: "serving tick/tick, 1 schedule" in served.said)
        wanted = {
            "deployments": {"name": {"any_": ["tick"]}},
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        (run, *_) = served.wait_for(lambda: served.api.post("/flow_runs/filter", json=wanted).json())
    finally:
        served.project.pipeline(PIPELINES)
    assert run["auto_scheduled"]
    assert run["parameters"] == {"question": "What is ice?"}
    expected, started = (datetime.fromisoformat(run[name]) for name in ("expected_start_time", "start_time"))
    assert expected.second == 0
    assert started - expected < timedelta(seconds=60)


def test_pipeline_that_is_taken_out_of_the_file_is_served_no_more(served: Served) -> None:
    served.wait_for(lambda: "tick is served no more" in served.said)
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        served.api.get("/deployments/name/tick/tick")


def test_edited_file_is_served_and_a_wrong_edit_is_said(served: Served) -> None:
    served.project.pipeline(PIPELINES.replace("id: final", "id: last"))
    served.wait_for(lambda: "pipeline.yaml changed" in served.said)
    run = served.run("base", question="What is ice?")
    tasks = served.api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run["id"]]}}}).json()
    assert "last: small" in {task["name"] for task in tasks}
    served.project.pipeline("base_pipeline: [")
    served.wait_for(lambda: "what was served before still is" in served.said)
    served.project.pipeline(PIPELINES)
    assert served.run("base", question="What is ice?")["state_type"] == "COMPLETED"


def test_host_that_is_killed_is_started_again_and_the_next_run_works(served: Served) -> None:
    address = read_address(served.project.path / "cache")
    assert address
    os.kill(address.pid, signal.SIGKILL)
    served.wait_for(lambda: "the model host died and is started again" in served.said)
    assert served.run("base", question="What is ice?")["state_type"] == "COMPLETED"


def test_run_goes_on_when_the_prefect_server_is_killed_and_comes_back(served: Served) -> None:
    run_id = begin_final(served)
    server = next(p for p in psutil.Process(served.process.pid).children() if "prefect" in p.cmdline())
    server.kill()
    served.wait_for(lambda: "the Prefect server died and is started again" in served.said)
    served.wait_for(served.answers)
    run = served.ended(run_id)
    assert run["state_type"] == "COMPLETED", served.said


def begin_final(served: Served) -> str:
    """A run of `fragile` that is in the middle of its long last stage."""
    run_id = served.start("fragile", question="What is ice?")
    served.wait_for(lambda: ("draft: small", "Completed") in served.tasks(run_id) and served.decoding())
    time.sleep(0.5)
    return run_id


def test_retry_runs_only_what_failed_in_the_same_session(served: Served) -> None:
    run_id = begin_final(served)
    served.kill_models()
    failed = served.ended(run_id)
    assert failed["state_type"] == "FAILED"
    assert "step 'final: small' failed" in failed["state"]["message"]
    sessions = {path: path.stat().st_mtime_ns for path in served.project.sessions.glob("session_*/step1.json")}
    served.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    served.wait_for(lambda: served.state_of(run_id)["run_count"] == 2)
    again = served.ended(run_id)
    assert again["state_type"] == "COMPLETED", served.said
    assert served.tasks(run_id)[-4:].count(("draft: small", "Cached")) == 1
    assert {p: p.stat().st_mtime_ns for p in served.project.sessions.glob("session_*/step1.json")} == sessions


def test_retry_after_an_edit_is_a_session_of_its_own_with_what_was_not_edited(served: Served) -> None:
    run_id = begin_final(served)
    served.kill_models()
    assert served.ended(run_id)["state_type"] == "FAILED"
    first = served.session_of(run_id)
    n_said = served.said.count("pipeline.yaml changed")
    served.project.pipeline(PIPELINES.replace("max_tokens: 440", "max_tokens: 9"))
    try:
        served.wait_for(lambda: served.said.count("pipeline.yaml changed") > n_said)
        served.set_state(run_id, "SCHEDULED", "AwaitingRetry")
        served.wait_for(lambda: served.state_of(run_id)["run_count"] == 2)
        assert served.ended(run_id)["state_type"] == "COMPLETED", served.said
    finally:
        served.project.pipeline(PIPELINES)
    (second,) = (folder for folder in served.sessions_of(run_id) if folder != first)
    record = json.loads((second / "session.json").read_text())
    assert (record["parent"], record["from_stage"], record["changed"]) == (
        first.name,
        "final",
        ["edited before a retry"],
    )
    assert (second / "step1.json").read_bytes() == (first / "step1.json").read_bytes()
    assert json.loads((second / "step2.json").read_text())["parameters"]["max_tokens"] == 9
    assert json.loads((first / "session.json").read_text())["status"] == "failed"
    assert not (first / "step2.json").exists()


def test_cancelled_run_ends_within_five_seconds_and_decodes_no_more(served: Served) -> None:
    run_id = begin_final(served)
    process = served.flow_process(run_id)
    served.set_state(run_id, "CANCELLING", "Cancelling")
    began = time.monotonic()
    assert served.ended(run_id)["state_type"] == "CANCELLED"
    served.wait_for(lambda: not served.decoding() and not process.is_running(), timeout_s=10)
    print(f"cancelled after {time.monotonic() - began:.1f} s")
    newest = max(served.project.sessions.glob("session_*"))
    assert '"status": "cancelled"' in (newest / "session.json").read_text()


def test_run_whose_process_is_killed_shows_as_crashed(served: Served) -> None:
    run_id = begin_final(served)
    served.flow_process(run_id).kill()
    assert served.ended(run_id)["state_type"] == "CRASHED"
    served.wait_for(lambda: not served.decoding(), timeout_s=10)


def test_second_serve_is_one_line(served: Served) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "deployments", "serve"],
        capture_output=True,
        text=True,
        cwd=served.project.path,
        env=served.environment,
        timeout=60,
    )
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith("gguf-flow: a model host runs already: process ")


def test_empty_models_folder_blocks_runs_but_not_serving(project: Project) -> None:
    project.models(MODELS)
    project.pipeline(PIPELINES)
    said: list[str] = []
    written = read_pipelines(Settings(), said.append)
    assert list(written.right) == ["base", "absent", "every-second", "fragile", "reviewed", "approved"]
    assert written.wrong == {"wrong"}
    blocked = [line for line in said if " cannot run yet: " in line]
    assert len(blocked) == 6
    assert all("the file is missing" in line and "\n" not in line for line in blocked)


def test_models_folder_that_is_not_there_is_one_line(project: Project) -> None:
    project.models("models_directory: elsewhere\nmodels: {}")
    project.pipeline(PIPELINES)
    refused = subprocess.run(
        [sys.executable, "-m", "deployments", "serve"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"gguf-flow: models directory {project.path}/elsewhere does not")


def test_port_of_something_else_is_one_line(project: Project) -> None:
    project.models("models: {}")
    project.pipeline("base_pipeline: {stages: [{id: a, model: m}]}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_SERVER_API_PORT": str(port)}
        environment.pop("PREFECT_API_URL", None)
        refused = subprocess.run(
            [sys.executable, "-m", "deployments", "serve"], capture_output=True, text=True, env=environment
        )
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1] == (
        f"gguf-flow: port {port} is taken, and by no Prefect server; set PREFECT_SERVER_API_PORT"
    )


def test_run_of_a_serve_that_was_killed_shows_as_crashed(killed: Killed) -> None:
    """Last, since it takes 90 s from the kill on."""
    while (run := killed.served.state_of(killed.run_id))["state_name"] == "Running":
        time.sleep(1)
    assert run["state_name"] == "Crashed"
    assert run["state"]["message"] == "no sign of life from its process for 90 s"
