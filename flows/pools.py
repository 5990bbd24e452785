"""Which pool a run uses: the model host's, its own, or the one that persistent pipelines of this process share."""

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from llm_core.host_address import read_address
from llm_core.host_pool import HostPool
from llm_core.local_pool import local_pool
from llm_core.machine import budget, read_machine
from llm_core.machine_lock import machine_lock
from llm_core.memory import MemoryEstimates
from llm_core.pool import ModelPool
from llm_core.pool_protocol import Pool
from llm_core.settings import Settings

_shared: dict[Settings, ModelPool] = {}
_shared_lock = threading.Lock()


@contextmanager
def run_pool(
    mode: str,
    settings: Settings,
    estimates: MemoryEstimates,
    say: Callable[[str], None],
    *,
    needs_memory: bool = True,
) -> Iterator[Pool]:
    """The pool of one run: the host's where one runs. Else the machine is this run's alone, and its models go at the
    end; in mode `persistent` they stay in this process until nobody has asked for them for a while.

    Args:
        say: told once where another run has to be waited for.
        needs_memory: a run of remote models alone waits for nobody.
    """
    if not needs_memory:
        with closing(local_pool(settings, estimates)) as unused:
            yield unused
        return
    if settings.host_url or read_address(settings.cache_folder):
        with closing(HostPool(settings.cache_folder, settings.host_url)) as of_host:
            yield of_host
        return
    with machine_lock(settings.cache_folder / "locks", budget(read_machine(), settings.limits), say):
        if mode == "persistent":
            yield _shared_pool(settings, estimates)
            return
        with closing(local_pool(settings, estimates, keep=mode != "sequential")) as pool:
            yield pool


def _shared_pool(settings: Settings, estimates: MemoryEstimates) -> ModelPool:
    with _shared_lock:
        pool = _shared.get(settings) or local_pool(settings, estimates, idle_ttl_s=settings.idle_ttl_s)
        _shared[settings] = pool
        return pool


def close_shared_pools() -> None:
    """Unload what persistent pipelines have left in memory."""
    with _shared_lock:
        pools = list(_shared.values())
        _shared.clear()
    for pool in pools:
        pool.close()


atexit.register(close_shared_pools)
