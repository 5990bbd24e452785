"""Decisions about memory, on tables worked out by hand. Sizes are in GiB; a model of n GiB is named by it."""

from dataclasses import replace

import pytest

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.cascade import StopRule
from llm_core.errors import InsufficientMemory
from llm_core.machine import Gpu, Limits, Machine, budget
from llm_core.memory import DeviceNeed, ModelNeed
from llm_core.memory_plan import memory_plan
from llm_core.placement import fitting_layers, place, threads_for
from llm_core.plan import AggregationPlan, Call, Plan, StagePlan
from llm_core.residency import Residency, choose_victims, plan_residency

GIB = 2**30
LAYERS = 11
SIZES = {"a": 4.0, "b": 4.0, "c": 4.0, "mistral": 4.8, "llama3": 5.0, "huge": 40.0, "small": 1.0}


def need(load: LoadParams) -> ModelNeed:
    """Layers share out the model evenly between GPU and RAM; each further sequence takes half a GiB."""
    size = int((SIZES[load.path] + 0.5 * (load.sequences - 1)) * GIB)
    if load.gpu is None:
        return ModelNeed(DeviceNeed(weights_bytes=size))
    on_gpu = size * (LAYERS if load.n_gpu_layers < 0 else load.n_gpu_layers) // LAYERS
    return ModelNeed(DeviceNeed(weights_bytes=size - on_gpu), DeviceNeed(weights_bytes=on_gpu), load.gpu)


def call(model: str, gpu_layers: int | None = None, member: str | None = None) -> Call:
    load = LoadParams(path=model, n_ctx=512)
    return Call(member or model, model, load, SamplingParams(), n_gpu_layers=gpu_layers, n_layers=LAYERS)


def plan(*stages: str, mode: str = "auto", on_insufficient: str = "fail", synthesis: str | None = None) -> Plan:
    """Each stage is the names of its models, such as `a` or `a b c`; the last may have a synthesis model."""
    made = []
    for number, names in enumerate(stages, 1):
        calls = tuple(call(name) for name in names.split())
        last = number == len(stages)
        aggregation = AggregationPlan("synthesis", synthesis=call(synthesis)) if synthesis and last else None
        made.append(StagePlan(f"s{number}", number, (), calls, "answer_only", aggregation, 0))
    return Plan("p", mode, tuple(made), on_insufficient, made[-1].id)


def on_ram(gib: float) -> dict[str, int]:
    return {"RAM": int(gib * GIB)}


def loads(residency: Residency) -> list[str]:
    return [load.path for stage in residency.stages for load in stage.loaded]


@pytest.mark.parametrize(
    ("stages", "slots", "loaded"),
    [
        # Two models fit. Belady keeps what is needed soonest: at c, a comes again before b, so b goes.
        (["a", "b", "c", "a", "b"], 2, ["a", "b", "c", "b"]),
        (["a", "b", "a", "c", "a", "b", "a", "c"], 2, ["a", "b", "c", "b", "c"]),
        # The least recently used model would go here at c: a, though it is wanted next.
        (["a", "b", "b", "c", "a"], 2, ["a", "b", "c"]),
        (["a", "b", "c", "a", "b", "c"], 3, ["a", "b", "c"]),
        (["a", "b", "a", "b"], 1, ["a", "b", "a", "b"]),
        (["a", "a", "a"], 1, ["a"]),
    ],
)
def test_loads_are_the_fewest_that_beladys_rule_gives(stages: list[str], slots: int, loaded: list[str]) -> None:
    assert loads(plan_residency(plan(*stages), on_ram(4 * slots), need, cores=2)) == loaded


def test_sequential_mode_unloads_each_model_before_the_next() -> None:
    residency = plan_residency(plan("a", "b", "a", mode="sequential"), on_ram(100), need, cores=2)
    assert loads(residency) == ["a", "b", "a"]
    assert [[load.path for load in stage.evicted] for stage in residency.stages] == [[], ["a"], ["b"]]
    assert max(stage.peak["RAM"] for stage in residency.stages) == 4 * GIB


@pytest.mark.parametrize(
    ("mode", "ram", "parallel"),
    [("auto", 12, True), ("auto", 11.9, False), ("parallel", 12, True), ("sequential", 100, False)],
)
def test_members_are_resident_side_by_side_where_they_fit(mode: str, ram: float, parallel: bool) -> None:
    (stage,) = plan_residency(plan("a b c", mode=mode), on_ram(ram), need, cores=2).stages
    assert stage.parallel is parallel
    assert stage.peak["RAM"] == (12 * GIB if parallel else stage.peak["RAM"])
    assert stage.peak["RAM"] <= ram * GIB


def test_refusal_of_parallel_says_what_is_needed_what_there_is_and_what_would_help() -> None:
    with pytest.raises(InsufficientMemory) as refusal:
        plan_residency(plan("mistral llama3", mode="parallel"), on_ram(6.1), need, cores=2)
    assert str(refusal.value) == (
        "s1 needs 9.8 GiB of RAM for mistral + llama3, 6.1 GiB available; "
        "sequential would need 5.0 GiB: set execution_mode: sequential or auto"
    )


def test_parallel_falls_back_to_sequential_where_the_pipeline_says_so() -> None:
    fallback = plan("mistral llama3", mode="parallel", on_insufficient="sequential")
    (stage,) = plan_residency(fallback, on_ram(6.1), need, cores=2).stages
    assert not stage.parallel


def test_model_too_large_for_anything_is_refused_even_in_a_late_stage() -> None:
    with pytest.raises(InsufficientMemory, match=r"s2 needs 40\.0 GiB of RAM for huge alone, 8\.0 GiB available"):
        plan_residency(plan("a", "huge"), on_ram(8), need, cores=2)


def test_synthesis_model_too_large_is_refused() -> None:
    with pytest.raises(InsufficientMemory, match="for huge alone"):
        plan_residency(plan("a b", synthesis="huge"), on_ram(8), need, cores=2)


def test_next_stages_models_are_prefetched_only_beside_what_is_resident() -> None:
    first = plan_residency(plan("a", "b c"), on_ram(8), need, cores=2).stages[0]
    assert [load.path for load in first.prefetched] == ["b"]
    alone = plan_residency(plan("a", "b c", mode="sequential"), on_ram(8), need, cores=2).stages[0]
    assert alone.prefetched == ()


@pytest.mark.parametrize(
    ("models", "mode", "cores", "threads"),
    [
        ("a b c", "auto", 2, [1, 1, 1]),  # two at once, the third when a core is free
        ("a b c", "sequential", 2, [2, 2, 2]),
        ("a b", "auto", 8, [4, 4]),
        ("a b c", "auto", 8, [2, 2, 2]),
        ("a b c", "sequential", 8, [8, 8, 8]),
        ("a", "auto", 8, [8]),
    ],
)
def test_threads_that_decode_at_once_never_exceed_the_cores(
    models: str, mode: str, cores: int, threads: list[int]
) -> None:
    planned = plan(models, mode=mode)
    placed = place(planned, on_ram(100), need)
    given = threads_for(planned.stages[0], mode != "sequential", placed, cores)
    assert list(given.values()) == threads


def test_model_wholly_on_a_gpu_decodes_with_one_thread_and_leaves_the_cores_to_others() -> None:
    planned = plan("a b")
    placed = place(planned, {"RAM": 100 * GIB, "GPU 0": 4 * GIB}, need)
    given = threads_for(planned.stages[0], True, placed, cores=8)
    assert {c.model: n for c, n in given.items()} == {"a": 1, "b": 8}


def placement(models: str, vram: dict[str, float], mode: str = "auto") -> dict[str, tuple[int | None, int]]:
    within = {"RAM": 100 * GIB} | {gpu: int(size * GIB) for gpu, size in vram.items()}
    return {c.model: (load.gpu, load.n_gpu_layers) for c, load in place(plan(models, mode=mode), within, need).items()}


@pytest.mark.parametrize(
    ("models", "vram", "mode", "expected"),
    [
        ("a", {}, "auto", {"a": (None, 0)}),
        ("a", {"GPU 0": 24}, "auto", {"a": (0, 11)}),
        ("a", {"GPU 0": 2.0}, "auto", {"a": (0, 5)}),  # 4 GiB in 11 layers: 5 take 1.82, 6 would take 2.18
        ("a", {"GPU 0": 0.2}, "auto", {"a": (None, 0)}),  # one layer takes 0.36
        ("a b", {"GPU 0": 8}, "auto", {"a": (0, 11), "b": (0, 11)}),
        ("a b", {"GPU 0": 6}, "auto", {"a": (0, 11), "b": (0, 5)}),
        ("a b", {"GPU 0": 6}, "sequential", {"a": (0, 11), "b": (0, 11)}),  # never there together
        ("a b", {"GPU 0": 4, "GPU 1": 5}, "auto", {"a": (1, 11), "b": (0, 11)}),  # the emptier first
    ],
)
def test_models_get_the_gpu_layers_that_fit_beside_their_companions(
    models: str, vram: dict[str, float], mode: str, expected: dict[str, tuple[int | None, int]]
) -> None:
    assert placement(models, vram, mode) == expected


@pytest.mark.parametrize(("wish", "expected"), [(0, (None, 0)), (4, (0, 4)), (-1, (0, 11)), (99, (0, 11))])
def test_gpu_layers_that_are_asked_for_are_the_most_a_model_gets(wish: int, expected: tuple[int | None, int]) -> None:
    planned = replace(plan("a"), stages=(replace(plan("a").stages[0], calls=(call("a", wish),)),))
    (load,) = place(planned, {"RAM": 100 * GIB, "GPU 0": 24 * GIB}, need).values()
    assert (load.gpu, load.n_gpu_layers) == expected


@pytest.mark.parametrize(
    ("members", "ram", "at_once", "mode", "expected"),
    [
        ("a", 100, 1, "auto", {"a": 1}),
        ("a a a", 100, 1, "auto", {"a": 3}),  # its samples are decoded together
        ("a", 100, 16, "auto", {"a": 16}),
        ("a", 8, 16, "auto", {"a": 8}),  # 4 GiB and 7 × 0.5; 16 would take 11.5
        ("a", 4.2, 16, "auto", {"a": 1}),
        ("a b", 12, 16, "auto", {"a": 4, "b": 4}),  # 2 × 5.5; eight each would take 2 × 7.5
        ("a b", 6, 16, "auto", {"a": 4, "b": 4}),  # not side by side in any case: 5.5 each
        ("a b", 8, 16, "sequential", {"a": 8, "b": 8}),  # never there together
    ],
)
def test_context_grows_to_as_many_answers_at_once_as_fit(
    members: str, ram: float, at_once: int, mode: str, expected: dict[str, int]
) -> None:
    placed = place(plan(members, mode=mode), on_ram(ram), need, at_once)
    assert {c.model: load.sequences for c, load in placed.items()} == expected


def test_answers_that_are_decoded_alone_need_one_sequence() -> None:
    greedy = replace(call("a"), sampling=SamplingParams(temperature=0))
    planned = replace(plan("a"), stages=(replace(plan("a").stages[0], calls=(greedy,)),))
    assert [load.sequences for load in place(planned, on_ram(100), need, at_once=16).values()] == [1]


def test_fitting_layers_is_the_most_that_fits() -> None:
    load = LoadParams("a", 512, gpu=0)
    fits = {vram: fitting_layers(load, LAYERS, int(vram * GIB), need) for vram in (0.3, 0.4, 2.0, 3.9, 4.0, 9.0)}
    assert fits == {0.3: 0, 0.4: 1, 2.0: 5, 3.9: 10, 4.0: 11, 9.0: 11}


@pytest.mark.parametrize(
    ("shortage", "next_use", "victims"),
    [
        ({"RAM": 1}, {"a": 1.0, "b": 9.0, "gpu": 5.0}, ["b"]),
        ({"RAM": 5}, {"a": 1.0, "b": 9.0, "gpu": 5.0}, ["b", "a"]),
        ({"GPU 0": 1}, {"a": 1.0, "b": 9.0, "gpu": 0.0}, ["gpu"]),  # only it frees anything there
        ({"RAM": 1}, {"a": 9.0, "b": 9.0, "gpu": 9.0}, ["a"]),  # nothing known: the least recently used
        ({"RAM": 100}, {"a": 1.0, "b": 9.0, "gpu": 5.0}, None),
        ({}, {"a": 1.0, "b": 9.0, "gpu": 5.0}, []),
    ],
)
def test_victims_are_those_needed_last_that_free_what_is_short(
    shortage: dict[str, int], next_use: dict[str, float], victims: list[str] | None
) -> None:
    idle = {"a": {"RAM": 4}, "b": {"RAM": 4}, "gpu": {"RAM": 0, "GPU 0": 4}}
    last_use = {"a": 1.0, "b": 2.0, "gpu": 3.0}
    assert choose_victims(idle, shortage, next_use.__getitem__, last_use.__getitem__) == victims


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(None, 100, 0, 100, 0), {"RAM": 20, "GPU 0": 6, "GPU 1": 10}),
        (Limits(1, 100, 0, 100, 0), {"RAM": 20, "GPU 1": 10}),
        (Limits(0, 90, 0, 50, 0), {"RAM": 4, "GPU 0": 4}),  # of 20 GiB VRAM 18, of which 14 are taken
        (Limits(0, 100, 2 * GIB, 100, 5 * GIB), {"RAM": 15, "GPU 0": 4}),
        (Limits(0, 100, 9 * GIB, 100, 99 * GIB), {"RAM": 0, "GPU 0": 0}),
    ],
)
def test_budget_keeps_to_percentages_and_reserves(limits: Limits, expected: dict[str, int]) -> None:
    gpus = (Gpu(0, "first", 20 * GIB, 6 * GIB), Gpu(1, "second", 10 * GIB, 10 * GIB))
    machine = Machine(cores=8, ram_total=32 * GIB, ram_available=20 * GIB, gpus=gpus)
    assert budget(machine, limits) == {name: size * GIB for name, size in expected.items()}


def cascade_of(*stages: str, mode: str = "auto") -> Plan:
    """A plan whose first stage asks its members one after another, two at least."""
    made = plan(*stages, mode=mode)
    asked = replace(made.stages[0], aggregation=AggregationPlan("cascade", stop=StopRule(0.6, 2)))
    return replace(made, stages=(asked, *made.stages[1:]))


@pytest.mark.parametrize("mode", ["auto", "parallel", "persistent"])
def test_members_of_a_cascade_need_no_room_beside_each_other(mode: str) -> None:
    (stage,) = plan_residency(cascade_of("a b c", mode=mode), on_ram(4), need, cores=2).stages
    assert not stage.parallel
    assert stage.peak["RAM"] == 4 * GIB
    assert [placement.threads for placement in stage.placements] == [2, 2, 2], "one decodes, with all cores"
    assert [load.path for load in stage.perhaps] == ["c"]


def test_members_of_a_cascade_have_the_gpu_to_themselves() -> None:
    within = {"RAM": 32 * GIB, "GPU 0": 4 * GIB}
    assert [load.n_gpu_layers for load in place(cascade_of("a b c"), within, need).values()] == [LAYERS] * 3


def test_samples_of_a_cascade_are_drawn_one_by_one_but_for_many_questions_together() -> None:
    sequences = [next(iter(place(cascade_of("a a a"), on_ram(99), need, n).values())).sequences for n in (1, 16)]
    assert sequences == [1, 16]


def test_next_stages_cascade_has_only_those_prefetched_that_are_surely_asked() -> None:
    made = cascade_of("a b c")
    both = replace(made, stages=(*plan("small").stages, replace(made.stages[0], id="s2", number=2)))
    first, _ = plan_residency(both, on_ram(99), need, cores=2).stages
    assert [load.path for load in first.prefetched] == ["a", "b"]


def test_memory_plan_of_a_cascade_says_what_may_not_be_loaded() -> None:
    text = memory_plan(plan_residency(cascade_of("a b c"), on_ram(99), need, cores=2))
    assert text.splitlines()[2:] == [
        "1. s1   one after another, peak RAM 12.0 GiB",
        "   loads a (a): 4.0 GiB RAM",
        "   loads b (b): 4.0 GiB RAM",
        "   loads c (c): 4.0 GiB RAM, if it is asked",
        "   threads: a 2, b 2, c 2",
        "",
        "at most 3 model loads in all",
    ]


def test_memory_plan_reads_as_a_story() -> None:
    text = memory_plan(plan_residency(plan("a", "b c", synthesis="a"), on_ram(8), need, cores=2))
    assert text.splitlines() == [
        "memory: models may take 8.0 GiB of RAM",
        "",
        "1. s1   peak RAM 4.0 GiB",
        "   loads a (a): 4.0 GiB RAM",
        "   prefetches b for the next stage",
        "   threads: a 2",
        "",
        "2. s2   side by side, peak RAM 8.0 GiB",
        "   loads b (b): 4.0 GiB RAM",
        "   loads c (c): 4.0 GiB RAM",
        "   loads a (a): 4.0 GiB RAM",
        "   evicts a",
        "   evicts b",
        "   threads: b 1, c 1, a 2",
        "",
        "4 model loads in all",
    ]
