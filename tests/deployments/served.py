"""`gguf-flow serve` as a real process, seen from its Prefect API."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from prefect.client.base import PrefectHttpxSyncClient

from llm_core.host_address import host_token, read_address
from tests.conftest import REPOSITORY, Project

START_S = 120.0


class Served:
    """A `serve` that runs, what it has said so far, and its Prefect API."""

    def __init__(self, project: Project, port: int) -> None:
        self.project, self.port = project, port
        self.log = project.path / "serve.log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PREFECT_HOME": str(project.path / "prefect"),
            "PREFECT_SERVER_API_PORT": str(port),
            "GGUF_FLOW_HOST_PORT": "0",
            "GGUF_FLOW_CACHE_DIR": str(project.path / "cache"),
        }
        self.environment.pop("PREFECT_API_URL", None)
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "deployments", "serve"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=project.path, env=self.environment)
        # Asks again where the server's database is busy with another writer (503), and raises on every error.
        self.api = PrefectHttpxSyncClient(base_url=f"http://127.0.0.1:{port}/api", timeout=60)

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

    def answers(self) -> bool:
        """Whether the Prefect server does."""
        try:
            return self.api.get("/health").is_success
        except httpx.HTTPError:
            return False

    def run(self, name: str, **parameters: Any) -> dict[str, Any]:
        """Ask for a run as the UI does; returns it when it has ended."""
        return self.ended(self.start(name, **parameters))

    def start(self, name: str, **parameters: Any) -> str:
        deployment = self.api.get(f"/deployments/name/{name}/{name}").json()
        path = f"/deployments/{deployment['id']}/create_flow_run"
        return str(self.api.post(path, json={"parameters": parameters}).json()["id"])

    def state_of(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self.api.get(f"/flow_runs/{run_id}").json()
        return run

    def ended(self, run_id: str, timeout_s: float = START_S) -> dict[str, Any]:
        def state() -> dict[str, Any] | None:
            run = self.state_of(run_id)
            return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return self.wait_for(state, timeout_s)  # type: ignore[no-any-return]

    def tasks(self, run_id: str) -> list[tuple[str, str]]:
        """(name, state) of a run's tasks, in order of their start."""
        found = self.api.post("/task_runs/filter", json={"flow_runs": {"id": {"any_": [run_id]}}}).json()
        return [(task["name"], task["state_name"]) for task in sorted(found, key=lambda task: task["created"])]

    def set_state(self, run_id: str, kind: str, name: str) -> None:
        self.api.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": kind, "name": name}})

    def flow_process(self, run_id: str) -> psutil.Process:
        """The process that a run is in."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = [process for process in below if process.environ().get("PREFECT__FLOW_RUN_ID") == run_id]
        assert found, [process.cmdline() for process in below]
        return found[0]

    def session_of(self, run_id: str) -> Path:
        """The one session folder of a run."""
        (folder,) = self.sessions_of(run_id)
        return folder

    def sessions_of(self, run_id: str) -> list[Path]:
        records = self.project.sessions.glob("session_*/session.json")
        return [path.parent for path in records if f'"flow_run_id": "{run_id}"' in path.read_text()]

    def kill_models(self) -> None:
        address = read_address(self.project.path / "cache")
        assert address
        for worker in psutil.Process(address.pid).children():
            worker.kill()

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
