"""Which pool a run uses: one of its own, or the one that persistent pipelines of this process share."""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from llm_core.call_params import LoadParams
from llm_core.gguf_file import read_gguf
from llm_core.machine import budget, device, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.placement import fitting_layers
from llm_core.pool import ModelPool
from llm_core.settings import Settings
from llm_core.status_board import StatusBoard
from llm_core.worker import ModelWorker

_shared: dict[Settings, ModelPool] = {}
_shared_lock = threading.Lock()


@contextmanager
def run_pool(mode: str, settings: Settings, estimates: MemoryEstimates) -> Iterator[ModelPool]:
    """The pool of one run. Mode `persistent`: models outlive the run, until nobody has asked for them for a while."""
    if mode == "persistent":
        with _shared_lock:
            pool = _shared.get(settings) or _make_pool(mode, settings, estimates)
            _shared[settings] = pool
        yield pool
        return
    pool = _make_pool(mode, settings, estimates)
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


def _make_pool(mode: str, settings: Settings, estimates: MemoryEstimates) -> ModelPool:
    machine = read_machine()
    return ModelPool(
        budget(machine, settings.limits),
        estimates.need,
        machine.cores,
        ModelWorker,
        free=lambda: budget(read_machine(), settings.limits),
        keep=mode != "sequential",
        idle_ttl_s=settings.idle_ttl_s if mode == "persistent" else None,
        on_change=StatusBoard(settings.cache_folder).post,
        lower=lambda load: _fewer_layers(load, settings, estimates),
    )


def _fewer_layers(load: LoadParams, settings: Settings, estimates: MemoryEstimates) -> LoadParams | None:
    """What is left to try after a GPU ran out of memory: the layers that fit what is free now, else the CPU."""
    if load.gpu is None:
        return None
    all_layers = (read_gguf(Path(load.path)).n_layers or 0) + 1
    n_layers = (all_layers if load.n_gpu_layers < 0 else load.n_gpu_layers) - 1
    free = budget(read_machine(), settings.limits).get(device(load.gpu), 0)
    layers = fitting_layers(load, n_layers, free, estimates.need)
    return replace(load, n_gpu_layers=layers) if layers else replace(load, n_gpu_layers=0, gpu=None)
