"""The model host as a process: takes the machine, serves until it is told to stop, leaves nothing behind."""

import ipaddress
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import uvicorn

from llm_core.errors import ConfigError, InputError
from llm_core.host import make_app
from llm_core.host_address import TOKEN_VARIABLE, HostAddress, host_token, post_address, take_down_address
from llm_core.host_models import HostModels
from llm_core.local_pool import local_pool
from llm_core.machine import budget, read_machine
from llm_core.machine_lock import machine_lock
from llm_core.memory import MemoryEstimates
from llm_core.settings import Settings


def serve_models(
    settings: Settings, bind: str, port: int, say: Callable[[str], None], *, with_parent: bool = False
) -> None:
    """Run the host; returns when it has been told to stop (SIGINT, SIGTERM) and every model is unloaded.

    Args:
        port: 0 takes a free one.
        say: told, in lines for people, where it answers and whom it waits for.
        with_parent: stop, too, when the process that started this one has gone, however it went.

    Raises:
        InputError: the port is taken, or the address cannot be bound to.
        ConfigError: it would be reachable from elsewhere with a token that nobody has chosen.
    """
    if with_parent:
        threading.Thread(target=_stop_without, args=(os.getppid(),), name="parent", daemon=True).start()
    _check_reach(bind)
    token = host_token(settings.cache_folder)
    listener = _listen(bind, port)
    with listener, machine_lock(settings.cache_folder / "locks", budget(read_machine(), settings.limits), say):
        estimates = MemoryEstimates(settings.cache_folder)
        pool = local_pool(settings, estimates, idle_ttl_s=settings.idle_ttl_s)
        app = make_app(pool, HostModels(settings, estimates, pool), token)
        url = f"http://{bind}:{listener.getsockname()[1]}"
        post_address(settings.cache_folder, HostAddress(url, os.getpid()))
        say(f"model host: {url}/v1")
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run([listener])
        finally:
            take_down_address(settings.cache_folder)
            pool.close()


def _stop_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    signal.raise_signal(signal.SIGTERM)


def _check_reach(bind: str) -> None:
    try:
        loopback = bind == "localhost" or ipaddress.ip_address(bind).is_loopback
    except ValueError:
        loopback = False
    if not loopback and not os.environ.get(TOKEN_VARIABLE):
        raise ConfigError(f"the model host binds to {bind} only with a token of your own in {TOKEN_VARIABLE}")


def _listen(bind: str, port: int) -> socket.socket:
    try:
        return socket.create_server((bind, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(f"the model host cannot listen on {bind}:{port}: {reason}; set GGUF_FLOW_HOST_PORT") from None
