"""The processes that `serve` stands on: a Prefect server, if none answers, and the model host."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from llm_core.errors import GgufFlowError, InputError
from llm_core.host_address import read_address
from llm_core.settings import Settings

START_S = 90.0
"""Most time that a server may take to answer; the first start of Prefect's on a slow disk takes 20 s."""
STOP_S = 10.0
"""How long a process may take to end by itself."""
SETTLED_S = 5.0
"""What ends sooner after its start may well end again and again."""
MOST_QUICK_ENDS = 3
REFUSED = 2
"""Exit code of our own commands where a person has to mend something first."""
PREFECT_PORT = 4200


@contextmanager
def prefect_server(say: Callable[[str], None]) -> Iterator[str]:
    """The Prefect server at PREFECT_API_URL, or one of our own on its default port; yields its API's address.

    Raises:
        InputError: none answers at PREFECT_API_URL, or the port is taken.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        if not _answers(f"{url}/health"):
            raise InputError(f"no Prefect server answers at PREFECT_API_URL {url}; start it, or unset the variable")
        yield url
        return
    port = int(os.environ.get("PREFECT_SERVER_API_PORT", PREFECT_PORT))
    url = f"http://127.0.0.1:{port}/api"
    if _answers(f"{url}/health"):
        os.environ["PREFECT_API_URL"] = url
        yield url
        return
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise InputError(f"port {port} is taken, and by no Prefect server; set PREFECT_SERVER_API_PORT")
    say("starting a Prefect server")
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with _kept(command, "the Prefect server", say, lambda: _answers(f"{url}/health"), quiet=True):
        os.environ["PREFECT_API_URL"] = url
        yield url
        del os.environ["PREFECT_API_URL"]


@contextmanager
def model_host(settings: Settings, say: Callable[[str], None]) -> Iterator[str]:
    """A model host of our own, started again when it dies; yields its address.

    Raises:
        InputError: a host runs already, and is not ours to stop.
    """
    if running := read_address(settings.cache_folder):
        raise InputError(f"a model host runs already: process {running.pid} at {running.url}; stop it first")
    command = [sys.executable, "-m", "flows", "host", "--with-parent"]
    with _kept(command, "the model host", say, lambda: read_address(settings.cache_folder) is not None, quiet=False):
        address = read_address(settings.cache_folder)
        if address is None:
            raise GgufFlowError("the model host ended at once")
        yield address.url


@contextmanager
def _kept(
    command: list[str], what: str, say: Callable[[str], None], ready: Callable[[], bool], *, quiet: bool
) -> Iterator[None]:
    """A child that is started again when it dies, for as long as the block lasts; entered when it is `ready`."""
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(command, what, say, stop, quiet), name=what, daemon=True)
    keeper.start()
    try:
        deadline = time.monotonic() + START_S
        while not ready():
            if not keeper.is_alive():
                raise GgufFlowError(f"{what} did not start" + ("" if quiet else "; its own message stands above"))
            if time.monotonic() > deadline:
                raise GgufFlowError(f"{what} did not answer within {START_S:.0f} s")
            time.sleep(0.2)
        yield
    finally:
        stop.set()
        keeper.join()


def _keep(command: list[str], what: str, say: Callable[[str], None], stop: threading.Event, quiet: bool) -> None:
    quick_ends = 0
    while not stop.is_set():
        started = time.monotonic()
        with _process(command, quiet=quiet) as child:
            while child.poll() is None and not stop.wait(0.2):
                pass
        if stop.is_set():
            return
        quick_ends = quick_ends + 1 if time.monotonic() - started < SETTLED_S else 0
        if child.returncode == REFUSED or quick_ends == MOST_QUICK_ENDS:
            say(f"{what} cannot stay up, and is not started again; start serve anew")
            return
        say(f"{what} died and is started again; runs that were using it are retried")


@contextmanager
def _process(command: list[str], *, quiet: bool = True) -> Iterator["subprocess.Popen[bytes]"]:
    """A child in a session of its own, so that Ctrl-C is ours to pass on; it is gone when the block ends."""
    out = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False
