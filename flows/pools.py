"""Which pool a run uses: one of its own, or the one that persistent pipelines of this process share."""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llm_core.local_pool import local_pool
from llm_core.memory import MemoryEstimates
from llm_core.pool import ModelPool
from llm_core.settings import Settings

_shared: dict[Settings, ModelPool] = {}
_shared_lock = threading.Lock()


@contextmanager
def run_pool(mode: str, settings: Settings, estimates: MemoryEstimates) -> Iterator[ModelPool]:
    """The pool of one run. Mode `persistent`: models outlive the run, until nobody has asked for them for a while."""
    if mode == "persistent":
        with _shared_lock:
            pool = _shared.get(settings) or local_pool(settings, estimates, idle_ttl_s=settings.idle_ttl_s)
            _shared[settings] = pool
        yield pool
        return
    pool = local_pool(settings, estimates, keep=mode != "sequential")
    try:
        yield pool
    finally:
        pool.close()


def close_shared_pools() -> None:
    """Unload what persistent pipelines have left in memory."""
    with _shared_lock:
        pools = list(_shared.values())
        _shared.clear()
    for pool in pools:
        pool.close()


atexit.register(close_shared_pools)
