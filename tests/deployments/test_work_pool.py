"""`deployments/prefect.yaml` as it is written: deployed, and run by a worker of its pool."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.client.base import PrefectHttpxSyncClient
from prefect.settings import get_current_settings

from tests.conftest import REPOSITORY

RUN_S = 120


@pytest.mark.usefixtures("prefect_server", "smollm")
def test_prefect_yaml_deploys_and_a_worker_runs_what_it_says(tmp_path: Path) -> None:
    url = get_current_settings().api.url
    assert url
    environment = os.environ | {
        "PREFECT_API_URL": url,
        "PYTHONPATH": str(REPOSITORY),
        "GGUF_FLOW_SESSIONS_DIR": str(tmp_path / "sessions"),
        "GGUF_FLOW_CACHE_DIR": str(tmp_path / "cache"),
    }

    def prefect(*arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prefect("work-pool", "create", "--type", "process", "workstation")
    prefect("--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
    api = PrefectHttpxSyncClient(base_url=url, timeout=30)  # asks again where the database is busy (503)
    made = {(d["name"], d["work_pool_name"]): d for d in api.post("/deployments/filter", json={}).json()}
    names = {name for name, pool in made if pool == "workstation"}
    assert names == {"base", "base-every-morning", "manual", "rerun", "prune", "batch"}
    (cron,) = made["base-every-morning", "workstation"]["schedules"]
    assert (cron["schedule"]["cron"], cron["schedule"]["timezone"]) == ("0 7 * * 1-5", "Europe/Berlin")
    assert made["base", "workstation"]["global_concurrency_limit"]["limit"] == 1

    asked = {"parameters": {"question": "What is ice?"}}
    run_id = api.post(f"/deployments/{made['base', 'workstation']['id']}/create_flow_run", json=asked).json()["id"]
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "workstation"]
    log = (tmp_path / "worker.log").open("w")
    worker = subprocess.Popen(command, stdout=log, stderr=log, cwd=REPOSITORY, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + RUN_S
        while (run := api.get(f"/flow_runs/{run_id}").json())["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
            time.sleep(0.5)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert run["state_type"] == "COMPLETED", (tmp_path / "worker.log").read_text()
    assert (tmp_path / "sessions" / "session_001" / "final.txt").read_text().strip()
