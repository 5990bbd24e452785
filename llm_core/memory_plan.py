"""The memory plan of a run, for people."""

from pathlib import Path

from llm_core.call_params import LoadParams
from llm_core.machine import RAM, gib
from llm_core.memory import ModelNeed, by_device
from llm_core.residency import Placement, Residency, StageResidency


def memory_plan(residency: Residency) -> str:
    """Per stage: who is loaded, evicted and prefetched, threads, and the peak of each device."""
    budget = ", ".join(f"{gib(size)} of {name}" for name, size in residency.budget.items())
    lines = [f"memory: models may take {budget}"]
    placements = [*(p for stage in residency.stages for p in stage.placements), *residency.spares]
    names = {p.load: p.call.model for p in placements}
    for number, stage in enumerate(residency.stages, 1):
        lines += ["", *_stage_lines(number, stage, residency, names)]
    if residency.spares:
        lines += ["", "only where another model gives no answer:"]
        spares = dict.fromkeys(placed.load for placed in residency.spares)
        lines += [f"   {_described(load, names, residency.needs[load])}" for load in spares]
    loads = sum(len(stage.loaded) for stage in residency.stages)
    at_most = "at most " * any(stage.perhaps for stage in residency.stages)
    lines += ["", f"{at_most}{loads} model load{'s' * (loads != 1)} in all"]
    return "\n".join(lines)


def needs_table(placements: tuple[Placement, ...], residency: Residency) -> list[dict[str, str]]:
    """A row per model and device: what it needs, of what kind, against the budget."""
    rows = []
    for load, model in {p.load: p.call.model for p in placements}.items():
        need = residency.needs[load]
        parts = {RAM: need.ram} | ({} if need.vram is None else {f"GPU {need.gpu}": need.vram})
        for device, part in parts.items():
            rows.append(
                {
                    "model": model,
                    "device": device,
                    "needs": gib(part.total_bytes),
                    "weights": gib(part.weights_bytes),
                    "KV cache": gib(part.kv_bytes),
                    "compute": gib(part.compute_bytes),
                    "process": gib(part.process_bytes),
                    "budget": gib(residency.budget.get(device, 0)),
                    "estimated by": need.source,
                }
            )
    return rows


def _stage_lines(number: int, stage: StageResidency, residency: Residency, names: dict[LoadParams, str]) -> list[str]:
    if not stage.placements:
        return [f"{number}. {stage.stage}   answered elsewhere", *_prefetches(stage, names)]
    peak = ", ".join(f"{name} {gib(size)}" for name, size in stage.peak.items())
    distinct = len({p.load for p in stage.placements})
    how = "" if distinct == 1 else "side by side, " if stage.parallel else "one after another, "
    lines = [f"{number}. {stage.stage}   {how}peak {peak}"]
    for load in stage.loaded:
        perhaps = ", if it is asked" if load in stage.perhaps else ""
        lines.append(f"   loads {_described(load, names, residency.needs[load])}{perhaps}")
    lines += [f"   evicts {names[load]}" for load in stage.evicted]
    lines += _prefetches(stage, names)
    threads = ", ".join(f"{p.call.member} {p.threads}" for p in stage.placements)
    return [*lines, f"   threads: {threads}"]


def _prefetches(stage: StageResidency, names: dict[LoadParams, str]) -> list[str]:
    return [f"   prefetches {names[load]} for the next stage" for load in stage.prefetched]


def _described(load: LoadParams, names: dict[LoadParams, str], need: ModelNeed) -> str:
    sizes = " + ".join(f"{gib(size)} {device}" for device, size in by_device(need).items())
    layers = f", {load.n_gpu_layers} layers on GPU {load.gpu}" if load.gpu is not None else ""
    answers = f", {load.sequences} answers at once" if load.sequences > 1 else ""
    formula = ", by formula" if need.source == "formula" else ""
    return f"{names[load]} ({Path(load.path).name}{layers}{answers}): {sizes}{formula}"
