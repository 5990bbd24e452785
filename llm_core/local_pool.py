"""A pool of this process for this machine: its memory is what the settings allow, its workers are real."""

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


def local_pool(
    settings: Settings, estimates: MemoryEstimates, *, keep: bool = True, idle_ttl_s: float | None = None
) -> ModelPool:
    """Make a pool; `keep` and `idle_ttl_s` as `ModelPool` has them."""
    machine = read_machine()
    return ModelPool(
        budget(machine, settings.limits),
        estimates.need,
        machine.cores,
        ModelWorker,
        free=lambda: budget(read_machine(), settings.limits),
        keep=keep,
        idle_ttl_s=idle_ttl_s,
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
