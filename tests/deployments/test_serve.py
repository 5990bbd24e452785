"""`gguf-flow serve` as a real process: a real Prefect server, a real model host, real runs."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llm_core.host_address import host_token, read_address
from tests.conftest import REPOSITORY, Project

MODELS = """
models:
  small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0.5}}
  gone: {file: gone.gguf}
"""
PIPELINES = """
base_pipeline:
  stages:
    - {id: draft, model: small}
    - {id: final, model: small}
pipelines:
  absent: {stages: [{id: a, model: gone}]}
  every-second:
    schedule: {interval_s: 2, parameters: {question: 'What is ice?'}, active: false}
    stages: [{id: a, model: small}]
  fragile:
    retries: 0
    stages:
      - {id: draft, model: small}
      # Any token is as likely as any other here, so hardly ever the one that ends the answer.
      - {id: final, model: small, generation: {max_tokens: 440, temperature: 5, top_k: 0, top_p: 1, min_p: 0}}
  wrong: {stages: [{id: a, model: small, aggregatoin: concat}]}
"""
START_S = 120.0


class Served:
    """A `serve` that runs, what it has said so far, and its Prefect API."""

    def __init__(self, project: Project, port: int) -> None:
        self.project, self.port = project, port
        self.log = project.path / "serve.log"
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(project.path / "prefect"),
            "PREFECT_SERVER_API_PORT": str(port),
            "GGUF_FLOW_HOST_PORT": "0",
        }
        environment.pop("PREFECT_API_URL", None)
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "deployments", "serve"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=project.path, env=environment)
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{port}/api", timeout=30)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, true: Callable[[], Any], timeout_s: float = START_S) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := true()):
            assert time.monotonic() < deadline, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.2)
        return value

    def run(self, name: str, **parameters: Any) -> dict[str, Any]:
        """Ask for a run as the UI does; returns it when it has ended."""
        return self.ended(self.start(name, **parameters))

    def start(self, name: str, **parameters: Any) -> str:
        deployment = self.api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
        created = self.api.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})
        return str(created.raise_for_status().json()["id"])

    def ended(self, run_id: str, timeout_s: float = START_S) -> dict[str, Any]:
        def state() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api.get(f"/flow_runs/{run_id}").json()
            return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return self.wait_for(state, timeout_s)  # type: ignore[no-any-return]

    def tasks(self, run_id: str) -> list[tuple[str, str]]:
        """(name, state) of a run's tasks, in order of their start."""
        found = self.api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run_id]}}}).json()
        return [(task["name"], task["state_name"]) for task in sorted(found, key=lambda task: task["created"])]

    def set_state(self, run_id: str, kind: str, name: str) -> None:
        self.api.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": kind, "name": name}}).raise_for_status()

    def flow_process(self, run_id: str) -> psutil.Process:
        """The process that a run is in."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = [process for process in below if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id]
        assert found, [process.cmdline() for process in below]
        return found[0]

    def decoding(self) -> list[dict[str, Any]]:
        """The models in use."""
        return [model for model in self.status()["models"] if model["users"]]

    def load_count(self) -> int:
        return int(self.status()["load_count"])

    def status(self) -> dict[str, Any]:
        cache = self.project.path / "cache"
        address = read_address(cache)
        assert address
        headers = {"Authorization": f"Bearer {host_token(cache)}"}
        state: dict[str, Any] = httpx.get(f"{address.url}/models/status", headers=headers).json()
        return state

    def stop(self, sig: int) -> list[psutil.Process]:
        """Stop it; returns its descendants that are still there."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(sig)
        self.process.wait(timeout=40)
        _, alive = psutil.wait_procs(below, timeout=15)
        return alive


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Iterator[Served]:
    project = Project(tmp_path_factory.mktemp("serve"))
    for name in ("config", "models", "sessions"):
        (project.path / name).mkdir()
    project.models(MODELS)
    project.pipeline(PIPELINES)
    project.link_model(smollm, "small.gguf")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GGUF_FLOW_CACHE_DIR", str(project.path / "cache"))
        served = Served(project, free_port())
        served.wait_for(lambda: "serving batch/batch" in served.said)
        yield served
        assert served.stop(signal.SIGINT) == []
        assert served.process.returncode == 0
        assert read_address(project.path / "cache") is None


def test_pipelines_that_are_right_are_served_and_the_wrong_one_is_named(served: Served) -> None:
    for name in ("base/base", "absent/absent", "every-second/every-second, 1 schedule", "batch/batch"):
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


def test_run_of_a_pipeline_whose_model_is_absent_says_so(served: Served) -> None:
    run = served.run("absent", question="What is ice?")
    assert run["state_type"] == "FAILED"
    assert "model 'gone' of stage 'a' is not usable" in run["state"]["message"]


def test_dataset_is_a_deployment_too(served: Served) -> None:
    path = served.project.path / "q.jsonl"
    path.write_text('{"question": "What is ice?"}\n{"question": "What is rain?"}\n')
    run = served.run("batch", dataset=str(path))
    assert run["state_type"] == "COMPLETED", served.said


def test_edited_file_is_served_and_a_wrong_edit_is_said(served: Served) -> None:
    served.project.pipeline(PIPELINES.replace("id: final", "id: last"))
    served.wait_for(lambda: "pipeline.yaml has changed" in served.said)
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


def begin_final(served: Served) -> str:
    """A run of `fragile` that is in the middle of its long last stage."""
    run_id = served.start("fragile", question="What is ice?")
    served.wait_for(lambda: ("draft: small", "Completed") in served.tasks(run_id) and served.decoding())
    time.sleep(0.5)
    return run_id


def test_retry_runs_only_what_failed_in_the_same_session(served: Served) -> None:
    run_id = begin_final(served)
    address = read_address(served.project.path / "cache")
    assert address
    for worker in psutil.Process(address.pid).children():
        worker.kill()
    failed = served.ended(run_id)
    assert failed["state_type"] == "FAILED"
    assert "step 'final: small' failed" in failed["state"]["message"]
    sessions = {path: path.stat().st_mtime_ns for path in served.project.sessions.glob("session_*/step1.json")}
    served.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    served.wait_for(lambda: served.api.get(f"/flow_runs/{run_id}").json()["run_count"] == 2)
    again = served.ended(run_id)
    assert again["state_type"] == "COMPLETED", served.said
    assert served.tasks(run_id)[-4:].count(("draft: small", "Cached")) == 1
    assert {p: p.stat().st_mtime_ns for p in served.project.sessions.glob("session_*/step1.json")} == sessions


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
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_SERVER_API_PORT": str(served.port)}
    second = subprocess.run(
        [sys.executable, "-m", "deployments", "serve"],
        capture_output=True,
        text=True,
        cwd=served.project.path,
        env=environment,
    )
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith("gguf-flow: a model host runs already: process ")


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
