"""Where each model goes: its device, its GPU layers, how many answers at once, and with how many threads. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from llm_core.call_params import LoadParams
from llm_core.machine import RAM, Bytes, fits, sums
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


def place(plan: Plan, within: Bytes, need: Need, at_once: int = 1) -> dict[Call, LoadParams]:
    """Device, GPU layers and sequences of every call, decided once for the run so that no stage loads a model anew.

    A call gets the layers it asks for, or as many as fit beside the models it shares a stage with; the rest, and all
    of a model that gets none, stays on the CPU. Then its context grows to as many answers at once as are wanted and
    fit: those of one stage, times the `at_once` questions of a dataset run; one that is decoded alone needs no more.
    """
    placed: dict[_Wish, LoadParams] = {}
    companions = _companions(plan)
    calls = [call for call in plan.every_call if call.load]
    for call in calls:
        wish = _wish(call)
        if wish not in placed:
            beside = [placed[other] for other in _beside(wish, companions) if other in placed]
            placed[wish] = _place_one(call, _left(within, beside, need), need)
    answers = _answers_at_once(plan, at_once)
    divisors = _divisors(placed, answers, companions, within, need)
    grown = {wish: _grown(load, answers.get(wish, 1), divisors[wish]) for wish, load in placed.items()}
    return {call: grown[_wish(call)] for call in calls}


_Wish = tuple[LoadParams, int | None]


def _wish(call: Call) -> _Wish:
    assert call.load
    return call.load, call.n_gpu_layers


def _answers_at_once(plan: Plan, at_once: int) -> dict[_Wish, int]:
    most: dict[_Wish, int] = {}
    for stage in plan.stages:
        synthesis = stage.aggregation.synthesis if stage.aggregation else None
        for calls in (stage.local, (synthesis,) if synthesis and synthesis.load else ()):
            counts = Counter(_wish(call) for call in calls if not call.sampling.alone)
            if stage.stop:  # one after another
                counts = Counter(set(counts))
            for wish, n_members in counts.items():
                # A dataset run fills the sequences with questions; its members need none of their own.
                most[wish] = max(most.get(wish, 1), n_members, at_once)
    return most


def _divisors(
    placed: Mapping[_Wish, LoadParams],
    answers: Mapping[_Wish, int],
    companions: list[set[_Wish]],
    within: Bytes,
    need: Need,
) -> dict[_Wish, int]:
    """By what each model's wish for sequences is divided (1, 2, 4, …), equally among those that share a stage."""
    divisors = dict.fromkeys(placed, 1)
    for group in [*({wish} for wish in placed), *companions]:
        divisor = 1
        while True:
            loads = {_grown(placed[wish], answers.get(wish, 1), divisor) for wish in group}
            fit = fits([by_device(need(load)) for load in loads], within)
            if fit or all(load.sequences == 1 for load in loads):
                break
            divisor *= 2
        if fit or len(group) == 1:  # a group that does not fit in any case is never there together
            divisors |= {wish: max(divisors[wish], divisor) for wish in group}
    return divisors


def _grown(load: LoadParams, answers: int, divisor: int) -> LoadParams:
    return replace(load, sequences=max(1, answers // divisor))


def _left(within: Bytes, beside: Iterable[LoadParams], need: Need) -> Bytes:
    taken = sums(by_device(need(load)) for load in set(beside))
    return {name: size - taken.get(name, 0) for name, size in within.items()}


def _beside(wish: _Wish, companions: list[set[_Wish]]) -> set[_Wish]:
    return {other for group in companions if wish in group for other in group} - {wish}


def _companions(plan: Plan) -> list[set[_Wish]]:
    if plan.execution_mode not in ("parallel", "auto", "persistent"):
        return []
    return [{_wish(call) for call in stage.local} for stage in plan.stages if not stage.stop]


def _place_one(call: Call, free: Bytes, need: Need) -> LoadParams:
    assert call.load
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
    on_cpu = {placed[call] for call in stage.local if not _wholly_on_gpu(call, placed[call])}
    at_once = min(len(on_cpu), cores) if parallel else 1
    share = max(1, cores // max(1, at_once))
    return {
        call: 1 if _wholly_on_gpu(call, placed[call]) else min(call.threads or cores, share) for call in stage.local
    }


def _wholly_on_gpu(call: Call, load: LoadParams) -> bool:
    return load.gpu is not None and (load.n_gpu_layers < 0 or load.n_gpu_layers >= call.n_layers)
