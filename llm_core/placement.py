"""Where each model goes: its device, its GPU layers, and the threads it decodes with. Pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from llm_core.call_params import LoadParams
from llm_core.machine import RAM, Bytes
from llm_core.memory import ModelNeed, by_device
from llm_core.plan import Call, Plan, StagePlan

Need = Callable[[LoadParams], ModelNeed]


def fitting_layers(load: LoadParams, n_layers: int, vram_bytes: int, need: Need) -> int:
    """The most layers of `load` that fit into `vram_bytes` of its GPU; 0 when not even one does.

    `n_layers` counts the output layer too. Need grows with layers, so a bisection finds it in log2(n) dry runs.
    """
    most, too_many = 0, n_layers + 1
    while too_many - most > 1:
        layers = (most + too_many) // 2
        if need(replace(load, n_gpu_layers=layers)).vram_bytes <= vram_bytes:
            most = layers
        else:
            too_many = layers
    return most


def place(plan: Plan, within: Bytes, need: Need) -> dict[Call, LoadParams]:
    """Device and GPU layers of every call, decided once for the run so that no stage loads a model anew.

    A call gets the layers it asks for, or as many as fit beside the models it shares a stage with; the rest, and all
    of a model that gets none, stays on the CPU.
    """
    placed: dict[tuple[LoadParams, int | None], LoadParams] = {}
    companions = _companions(plan)
    for call in plan.calls:
        wish = (call.load, call.n_gpu_layers)
        if wish in placed:
            continue
        beside = {other for group in companions if wish in group for other in group}
        loads = dict.fromkeys(placed[other] for other in beside if other in placed)
        free = dict(within)
        for load in loads:
            for name, size in by_device(need(load)).items():
                free[name] = free.get(name, 0) - size
        placed[wish] = _place_one(call, free, need)
    return {call: placed[call.load, call.n_gpu_layers] for call in plan.calls}


def _companions(plan: Plan) -> list[set[tuple[LoadParams, int | None]]]:
    together = plan.execution_mode in ("parallel", "auto", "persistent")
    return [{(c.load, c.n_gpu_layers) for c in stage.calls} for stage in plan.stages] if together else []


def _place_one(call: Call, free: Bytes, need: Need) -> LoadParams:
    gpus = sorted((name for name in free if name != RAM), key=lambda name: -free[name])
    if not gpus or call.n_gpu_layers == 0:
        return replace(call.load, n_gpu_layers=0, gpu=None)
    gpu = gpus[0]
    on_gpu = replace(call.load, gpu=int(gpu.removeprefix("GPU ")))
    wished = call.n_layers if call.n_gpu_layers in (None, -1) else min(call.n_gpu_layers or 0, call.n_layers)
    whole = replace(on_gpu, n_gpu_layers=wished)
    if need(whole).vram_bytes <= free[gpu]:
        return whole
    layers = fitting_layers(on_gpu, wished, free[gpu], need)
    return replace(on_gpu, n_gpu_layers=layers) if layers else replace(call.load, n_gpu_layers=0, gpu=None)


def threads_for(stage: StagePlan, parallel: bool, placed: Mapping[Call, LoadParams], cores: int) -> dict[Call, int]:
    """Decoding threads of each call, so that what decodes at once never exceeds the cores.

    Models that are resident side by side share the cores; where there are fewer cores than models, each takes one as
    it comes free. The last at work grows into what the others have left. A model that lies wholly on a GPU takes one.
    """
    on_cpu = {placed[call] for call in stage.calls if not _wholly_on_gpu(call, placed[call])}
    at_once = min(len(on_cpu), cores) if parallel else 1
    share = max(1, cores // max(1, at_once))
    return {
        call: 1 if _wholly_on_gpu(call, placed[call]) else min(call.threads or cores, share) for call in stage.calls
    }


def _wholly_on_gpu(call: Call, load: LoadParams) -> bool:
    return load.gpu is not None and (load.n_gpu_layers < 0 or load.n_gpu_layers >= call.n_layers)
