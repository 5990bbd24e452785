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
        deployment = self.api.get(f"/deployments/name/{name}/{name}").json()
        created = self.api.post(f"/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})

        def ended() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api.get(f"/flow_runs/{created.json()['id']}").json()
            return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return self.wait_for(ended)  # type: ignore[no-any-return]

    def load_count(self) -> int:
        cache = self.project.path / "cache"
        address = read_address(cache)
        assert address
        headers = {"Authorization": f"Bearer {host_token(cache)}"}
        return int(httpx.get(f"{address.url}/models/status", headers=headers).json()["load_count"])

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
