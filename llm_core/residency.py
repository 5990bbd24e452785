"""Plan × budget → who is resident when, where, and with how many threads. Pure functions; nothing is loaded."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TypeVar

from llm_core.call_params import LoadParams
from llm_core.errors import InsufficientMemory
from llm_core.machine import Bytes, fits, gib, sums
from llm_core.memory import ModelNeed, by_device
from llm_core.placement import Need, place, threads_for
from llm_core.plan import Call, Plan, StagePlan

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Placement:
    """One call's model: how it is loaded, and with how many threads it decodes."""

    call: Call
    load: LoadParams
    threads: int


@dataclass(frozen=True)
class StageResidency:
    """One stage: its members side by side in memory or one after another, and what that does to the resident models."""

    stage: str
    parallel: bool
    placements: tuple[Placement, ...]
    """Of the stage's members, then of its synthesis model if it has one."""
    loaded: tuple[LoadParams, ...]
    evicted: tuple[LoadParams, ...]
    prefetched: tuple[LoadParams, ...]
    """The next stage's models that fit beside this one's."""
    peak: Bytes
    perhaps: frozenset[LoadParams] = frozenset()
    """Of members of a cascade that may not be asked."""


@dataclass(frozen=True)
class Residency:
    """The memory plan of a whole run."""

    budget: Bytes
    needs: Mapping[LoadParams, ModelNeed]
    stages: tuple[StageResidency, ...]
    spares: tuple[Placement, ...] = ()
    """Of calls that are made only where another fails; no stage reckons with them."""


def choose_victims(
    idle: Mapping[Key, Bytes], shortage: Bytes, next_use: Callable[[Key], float], last_use: Callable[[Key], float]
) -> list[Key] | None:
    """Whom to evict so that `shortage` bytes become free: the furthest next use first (Belady), then the least recent.

    Returns `None` where even all of `idle` is not enough; one that frees nothing on a short device is spared.
    """
    missing = {name: size for name, size in shortage.items() if size > 0}
    victims: list[Key] = []
    for key in sorted(idle, key=lambda k: (-next_use(k), last_use(k))):
        if not any(size > 0 for size in missing.values()):
            break
        if any(missing.get(name, 0) > 0 and size > 0 for name, size in idle[key].items()):
            victims.append(key)
            missing = {name: size - idle[key].get(name, 0) for name, size in missing.items()}
    return victims if all(size <= 0 for size in missing.values()) else None


def decide(
    stage: StagePlan, mode: str, on_insufficient: str, placed: Mapping[Call, LoadParams], within: Bytes, need: Need
) -> bool:
    """Whether the stage's members are resident side by side; a single model is, those of a cascade need not be.

    Raises:
        InsufficientMemory: what is needed, what there is, and what would help.
    """
    mode = "sequential" if stage.stop else mode
    loads = list(dict.fromkeys(placed[call] for call in stage.local))
    names = {placed[call]: call.model for call in stage.local}
    needs = {load: by_device(need(load)) for load in loads}
    if mode != "sequential" and fits(needs.values(), within):
        return True
    too_large = [load for load in loads if not fits([needs[load]], within)]
    if too_large:
        raise InsufficientMemory(
            f"{stage.id} needs {_amounts(needs[too_large[0]], within)} for {names[too_large[0]]} alone, "
            f"{_available(within, needs[too_large[0]])} available: lower n_ctx or take a smaller quantization"
        )
    if mode == "parallel" and on_insufficient == "fail":
        total = sums(needs.values())
        largest = {name: max(n.get(name, 0) for n in needs.values()) for name in total}
        raise InsufficientMemory(
            f"{stage.id} needs {_amounts(total, within)} for {' + '.join(names.values())}, "
            f"{_available(within, total)} available; sequential would need {_sizes(largest)}: "
            "set execution_mode: sequential or auto"
        )
    return len(loads) <= 1


def plan_residency(plan: Plan, within: Bytes, need: Need, cores: int, at_once: int = 1) -> Residency:
    """The whole run on paper: loads, evictions, prefetches and peaks, stage by stage.

    Args:
        at_once: questions that a dataset run would like to have decoded at the same time.

    Raises:
        InsufficientMemory: a stage can never run within this budget; nothing has been loaded.
    """
    placed = place(plan, within, need, at_once)
    parallel = {
        stage.id: decide(stage, plan.execution_mode, plan.on_insufficient_memory, placed, within, need)
        for stage in plan.stages
    }
    steps = _steps(plan, placed, parallel)
    spares = _spares(plan, placed, within, need, cores)
    needs = {load: need(load) for load in [*(load for _, group in steps for load in group), *(s.load for s in spares)]}
    for stage, group in steps:
        if not fits([by_device(needs[load]) for load in group], within):
            decide(_only_synthesis(plan, stage), "sequential", "fail", placed, within, need)
    history = _simulate(steps, {load: by_device(n) for load, n in needs.items()}, within, plan.execution_mode)
    stages = tuple(
        _stage_residency(plan, position, parallel, placed, history, needs, within, cores)
        for position in range(len(plan.stages))
    )
    return Residency(within, needs, stages, spares)


def _spares(
    plan: Plan, placed: Mapping[Call, LoadParams], within: Bytes, need: Need, cores: int
) -> tuple[Placement, ...]:
    """Fallbacks with a model in memory: each must fit alone."""
    spares = []
    for stage in plan.stages:
        for call in (other for asked in stage.asked for other in asked.fallback):
            if call.load:
                alone = replace(stage, calls=(call,))
                decide(alone, "sequential", "fail", placed, within, need)
                spares.append(Placement(call, placed[call], threads_for(alone, True, placed, cores)[call]))
    return tuple(spares)


def _steps(
    plan: Plan, placed: Mapping[Call, LoadParams], parallel: Mapping[str, bool]
) -> list[tuple[str, list[LoadParams]]]:
    """Stage id and the loads that must be resident at one time, in order of execution."""
    steps = []
    for stage in plan.stages:
        loads = list(dict.fromkeys(placed[call] for call in stage.local))
        if loads:
            steps += [(stage.id, loads)] if parallel[stage.id] else [(stage.id, [load]) for load in loads]
        if stage.aggregation and stage.aggregation.synthesis and stage.aggregation.synthesis.load:
            steps.append((stage.id, [placed[stage.aggregation.synthesis]]))
    return steps


def _only_synthesis(plan: Plan, stage_id: str) -> StagePlan:
    stage = next(stage for stage in plan.stages if stage.id == stage_id)
    assert stage.aggregation
    assert stage.aggregation.synthesis
    return replace(stage, calls=(stage.aggregation.synthesis,))


@dataclass(frozen=True)
class _Event:
    stage: str
    loaded: tuple[LoadParams, ...]
    evicted: tuple[LoadParams, ...]
    resident: frozenset[LoadParams]


def _simulate(
    steps: Sequence[tuple[str, list[LoadParams]]], needs: Mapping[LoadParams, Bytes], within: Bytes, mode: str
) -> list[_Event]:
    resident: dict[LoadParams, int] = {}
    events = []
    for now, (stage, group) in enumerate(steps):
        idle = {load: needs[load] for load in resident if load not in group}
        missing = [load for load in group if load not in resident]
        wanted = sums(needs[load] for load in [*resident, *missing])
        shortage = {name: size - within.get(name, 0) for name, size in wanted.items()}
        next_use = next_uses(steps, now)
        victims = list(idle) if mode == "sequential" else choose_victims(idle, shortage, next_use, resident.__getitem__)
        for load in victims or []:
            del resident[load]
        resident |= dict.fromkeys(group, now)
        events.append(_Event(stage, tuple(missing), tuple(victims or ()), frozenset(resident)))
    return events


def next_uses(steps: Sequence[tuple[str, list[LoadParams]]], now: int) -> Callable[[LoadParams], float]:
    """When each load is wanted next after step `now`; infinity for never."""

    def next_use(load: LoadParams) -> float:
        return next((float(later) for later in range(now + 1, len(steps)) if load in steps[later][1]), inf)

    return next_use


def _stage_residency(
    plan: Plan,
    position: int,
    parallel: Mapping[str, bool],
    placed: Mapping[Call, LoadParams],
    history: list[_Event],
    needs: Mapping[LoadParams, ModelNeed],
    within: Bytes,
    cores: int,
) -> StageResidency:
    stage = plan.stages[position]
    events = [event for event in history if event.stage == stage.id]
    threads = threads_for(stage, parallel[stage.id], placed, cores)
    placements = [Placement(call, placed[call], threads[call]) for call in stage.local]
    if stage.aggregation and stage.aggregation.synthesis and stage.aggregation.synthesis.load:
        call = stage.aggregation.synthesis
        alone = threads_for(replace(stage, calls=(call,)), True, placed, cores)
        placements.append(Placement(call, placed[call], alone[call]))
    resident = [event.resident for event in events] or [_resident_before(plan, position, history)]
    usage = [sums(by_device(needs[load]) for load in held) for held in resident]
    peak = {name: max(use.get(name, 0) for use in usage) for name in within}
    return StageResidency(
        stage=stage.id,
        parallel=parallel[stage.id],
        placements=tuple(placements),
        loaded=tuple(load for event in events for load in event.loaded),
        evicted=tuple(load for event in events for load in event.evicted),
        prefetched=_prefetched(plan, position, placed, resident[-1], needs, within),
        peak=peak,
        perhaps=frozenset(placed[c] for c in stage.local) - {placed[c] for c in stage.surely_asked if c.load},
    )


def _resident_before(plan: Plan, position: int, history: list[_Event]) -> frozenset[LoadParams]:
    """What lies in memory while a stage of remote models runs."""
    before = {stage.id for stage in plan.stages[:position]}
    return next((event.resident for event in reversed(history) if event.stage in before), frozenset())


def _prefetched(
    plan: Plan,
    position: int,
    placed: Mapping[Call, LoadParams],
    resident: frozenset[LoadParams],
    needs: Mapping[LoadParams, ModelNeed],
    within: Bytes,
) -> tuple[LoadParams, ...]:
    """The next stage's models, as long as they fit beside what is resident; a sequential run prefetches nothing."""
    if plan.execution_mode == "sequential" or position + 1 == len(plan.stages):
        return ()
    chosen: list[LoadParams] = []
    for load in dict.fromkeys(placed[call] for call in plan.stages[position + 1].surely_asked if call.load):
        beside = [by_device(needs[other]) for other in {*resident, *chosen, load}]
        if load not in resident and fits(beside, within):
            chosen.append(load)
    return tuple(chosen)


def _amounts(need: Bytes, within: Bytes) -> str:
    """`9.8 GiB of RAM`; where a budget is given, only the devices that are short, if any is."""
    short = {name: size for name, size in need.items() if name in within and size > within[name]} or need
    return " and ".join(f"{gib(size)} of {name}" for name, size in short.items())


def _sizes(need: Bytes) -> str:
    return gib(next(iter(need.values()))) if len(need) == 1 else _amounts(need, {})


def _available(within: Bytes, need: Bytes) -> str:
    short = [name for name, size in need.items() if size > within.get(name, 0)]
    return " and ".join(gib(within.get(name, 0)) for name in short)
