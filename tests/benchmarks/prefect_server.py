"""A Prefect server of its own for a benchmark; to be entered before anything imports Prefect."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.llama_server import await_health, free_port


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """A running server with its database in `home`; yields its API address, which PREFECT_API_URL then holds."""
    os.environ |= {
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
    }
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    url = f"http://127.0.0.1:{port}/api"
    try:
        await_health(f"{url}/health", server, "the Prefect server")
        os.environ["PREFECT_API_URL"] = url
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
