"""A pipeline and the models that are here become a Plan, every parameter resolved."""

import re
from pathlib import Path

import pytest

from llm_core.call_params import SamplingParams
from llm_core.cascade import StopRule
from llm_core.constraints import schema_constraint
from llm_core.errors import ConfigError, PlanError
from llm_core.pipeline import load_pipeline
from llm_core.plan import Call, Plan
from llm_core.plan_text import plan_text
from llm_core.planner import make_plan
from llm_core.registry import load_registry
from llm_core.settings import Settings
from tests.conftest import Project
from tests.llm_core.tiny_gguf import write_tiny_gguf
from tests.llm_core.tiny_mmproj import write_tiny_mmproj

ONE_MODEL = "models: {m: {file: m.gguf}}"
TWO_MODELS = "models: {m: {file: m.gguf}, n: {file: n.gguf}}"


@pytest.fixture(autouse=True)
def files(project: Project) -> None:
    """Two files, trained for 512 tokens, and one that does not say for how many."""
    for name in ("m", "n"):
        write_tiny_gguf(project.path / "models" / f"{name}.gguf")
    write_tiny_gguf(project.path / "models" / "silent.gguf", llama__context_length=None)


def plan(project: Project, models: str, *stages: str, pipeline: str = "base", more: str = "") -> Plan:
    project.models(models)
    key = "base_pipeline:" if pipeline == "base" else f"pipelines:\n  {pipeline}:"
    path = project.pipeline(f"{key} {{stages: [{', '.join(stages)}], {more}}}")
    return make_plan(load_pipeline(path, pipeline), load_registry(Settings()), source=path)


def only_call(project: Project, models: str, stage: str) -> Call:
    (call,) = plan(project, models, stage).calls
    return call


@pytest.mark.parametrize(
    ("defaults", "overrides", "stage", "member", "expected"),
    [
        ("", "", "", "", SamplingParams(temperature=0.8, top_p=0.95, top_k=40, min_p=0.05, max_tokens=512)),
        ("temperature: 0.1", "", "", "", SamplingParams(temperature=0.1)),
        ("temperature: 0.1", "temperature: 0.2", "", "", SamplingParams(temperature=0.2)),
        ("temperature: 0.1", "temperature: 0.2", "temperature: 0.3", "", SamplingParams(temperature=0.3)),
        ("temperature: 0.1", "temperature: 0.2", "temperature: 0.3", "temperature: 0", SamplingParams(temperature=0)),
        (
            "temperature: 0.1, top_p: 0.1, top_k: 1, max_tokens: 1",
            "temperature: 0.2, top_p: 0.2, top_k: 2",
            "temperature: 0.3, top_p: 0.3",
            "temperature: 0.4",
            SamplingParams(temperature=0.4, top_p=0.3, top_k=2, max_tokens=1),
        ),
        ("stop: [a, b], seed: 1", "stop: c", "seed: -1", "", SamplingParams(stop=("c",), seed=None)),
    ],
)
def test_member_goes_before_stage_before_model_before_defaults(
    project: Project, defaults: str, overrides: str, stage: str, member: str, expected: SamplingParams
) -> None:
    call = only_call(
        project,
        f"defaults: {{{defaults}}}\nmodels: {{m: {{file: m.gguf, overrides: {{{overrides}}}}}}}",
        f"{{id: a, models: [{{model: m, generation: {{{member}}}}}], generation: {{{stage}}}}}",
    )
    assert call.sampling == expected


@pytest.mark.parametrize(
    ("stage", "member", "texts"),
    [
        ("", "", (None, None)),
        ("system_prompt: S, instructions: I", "", ("S", "I")),
        ("system_prompt: S, instructions: I", "instructions: J", ("S", "J")),
        ("system_prompt: S", "system_prompt: ''", ("", None)),
    ],
)
def test_prompts_of_a_member_go_before_those_of_its_stage(
    project: Project, stage: str, member: str, texts: tuple[str | None, str | None]
) -> None:
    call = only_call(project, ONE_MODEL, f"{{id: a, models: [{{model: m, {member}}}], {stage}}}")
    assert (call.system_prompt, call.instructions) == texts


@pytest.mark.parametrize(
    ("defaults", "model", "stage", "n_ctx"),
    [
        ("", "file: m.gguf", "", 512),
        ("n_ctx: 256", "file: m.gguf", "", 256),
        ("n_ctx: 2048", "file: m.gguf", "", 512),
        ("n_ctx: 256", "file: m.gguf, default_n_ctx: 300", "", 300),
        ("n_ctx: 256", "file: m.gguf, default_n_ctx: 300, overrides: {n_ctx: 320}", "", 320),
        ("n_ctx: 256", "file: m.gguf, default_n_ctx: 300, overrides: {n_ctx: 320}", "n_ctx: 512", 512),
        ("", "file: silent.gguf", "", 4096),
        ("n_ctx: 8192", "file: silent.gguf", "", 8192),
        ("", "file: silent.gguf", "n_ctx: 100000", 100000),
    ],
)
def test_context_length_is_the_most_specific_and_a_default_is_cut_to_the_trained_one(
    project: Project, defaults: str, model: str, stage: str, n_ctx: int
) -> None:
    models = f"defaults: {{{defaults}}}\nmodels: {{m: {{{model}}}}}"
    assert only_call(project, models, f"{{id: a, model: m, generation: {{{stage}}}}}").load.n_ctx == n_ctx


@pytest.mark.parametrize(
    ("model", "stage"),
    [("", "n_ctx: 513"), ("default_n_ctx: 513", ""), ("overrides: {n_ctx: 513}", "")],
)
def test_context_length_beyond_the_trained_one_is_refused_where_it_was_asked_for(
    project: Project, model: str, stage: str
) -> None:
    models = f"models: {{m: {{file: m.gguf, {model}}}}}"
    with pytest.raises(PlanError, match="n_ctx 513 is more than the 512 tokens 'm' was trained for"):
        plan(project, models, f"{{id: a, model: m, generation: {{{stage}}}}}")


@pytest.mark.parametrize(
    ("defaults", "model", "stage", "layers"),
    [
        ("", "", "", None),
        ("n_gpu_layers: 5", "", "", 5),
        ("n_gpu_layers: 5", "default_gpu_layers: 7", "", 7),
        ("n_gpu_layers: 5", "default_gpu_layers: 7, overrides: {n_gpu_layers: -1}", "", -1),
        ("n_gpu_layers: 5", "default_gpu_layers: 7", "n_gpu_layers: 0", 0),
    ],
)
def test_gpu_layers_are_the_most_specific(
    project: Project, defaults: str, model: str, stage: str, layers: int | None
) -> None:
    models = f"defaults: {{{defaults}}}\nmodels: {{m: {{file: m.gguf, {model}}}}}"
    call = only_call(project, models, f"{{id: a, model: m, generation: {{{stage}}}}}")
    assert call.n_gpu_layers == layers


@pytest.mark.parametrize(
    ("defaults", "overrides", "threads"),
    [("", "", None), ("threads: 2", "", 2), ("threads: 2", "threads: 3", 3)],
)
def test_most_threads_of_a_model_go_before_those_of_the_defaults(
    project: Project, defaults: str, overrides: str, threads: int | None
) -> None:
    models = f"defaults: {{{defaults}}}\nmodels: {{m: {{file: m.gguf, overrides: {{{overrides}}}}}}}"
    assert only_call(project, models, "{id: a, model: m}").threads == threads


def test_repeated_model_gets_a_number_and_the_next_seed(project: Project) -> None:
    planned = plan(project, TWO_MODELS, "{id: a, models: [m, n, m, m], generation: {seed: 10}}")
    assert [(call.member, call.model, call.sampling.seed) for call in planned.calls] == [
        ("m", "m", 10),
        ("n", "n", 10),
        ("m_2", "m", 11),
        ("m_3", "m", 12),
    ]


def test_repeated_model_without_a_seed_draws_one_each_time(project: Project) -> None:
    planned = plan(project, ONE_MODEL, "{id: a, models: [m, m]}")
    assert [call.sampling.seed for call in planned.calls] == [None, None]


def test_name_that_a_repetition_would_take_is_left_to_the_model_that_has_it(project: Project) -> None:
    models = "models: {m: {file: m.gguf}, m_2: {file: n.gguf}}"
    planned = plan(project, models, "{id: a, models: [m_2, m, m]}")
    assert [call.member for call in planned.calls] == ["m_2", "m", "m_3"]


@pytest.mark.parametrize(
    ("stages", "order", "final"),
    [
        (["{id: a, model: m}", "{id: b, model: m}", "{id: c, model: m}"], "abc", "c"),
        (["{id: a, model: m, input_from: c}", "{id: b, model: m, input_from: []}", "{id: c, model: m}"], "bca", "a"),
        (["{id: a, model: m}", "{id: b, model: m, input_from: a}", "{id: c, model: m, input_from: a}"], "abc", "c"),
        (["{id: a, model: m, input_from: b}", "{id: b, model: m, input_from: question}"], "ba", "a"),
    ],
)
def test_stages_run_after_their_inputs_and_the_last_that_nothing_reads_answers(
    project: Project, stages: list[str], order: str, final: str
) -> None:
    planned = plan(project, ONE_MODEL, *stages)
    assert "".join(stage.id for stage in planned.stages) == order
    assert [stage.number for stage in planned.stages] == list(range(1, len(order) + 1))
    assert planned.final == final


@pytest.mark.parametrize(
    ("stages", "cycle"),
    [
        (["{id: a, model: m, input_from: a}"], "a → a"),
        (
            ["{id: draft, model: m, input_from: critique}", "{id: critique, model: m, input_from: draft}"],
            "draft → critique → draft",
        ),
    ],
)
def test_stages_that_wait_for_each_other_are_drawn(project: Project, stages: list[str], cycle: str) -> None:
    with pytest.raises(PlanError) as refusal:
        plan(project, ONE_MODEL, *stages)
    assert str(refusal.value).endswith(f"the stages wait for each other: {cycle}")


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        (
            ["{id: a, model: m}", "{id: review, model: mistrl}"],
            "base_pipeline.stages[1].model: unknown model 'mistrl' in stage 'review'; did you mean 'mistral'?",
        ),
        (
            ["{id: a, models: [m, mm]}"],
            "base_pipeline.stages[0].models[1]: unknown model 'mm' in stage 'a'; did you mean 'm'?",
        ),
        (
            ["{id: a, models: [m, gone]}"],
            "base_pipeline.stages[0].models[1]: model 'gone' of stage 'a' is not usable: ",
        ),
        (
            ["{id: a, model: m, fallback: [mistal]}"],
            "base_pipeline.stages[0].fallback[0]: unknown model 'mistal' in stage 'a'; did you mean 'mistral'?",
        ),
        (
            ["{id: a, models: [m], aggregation: synthesis, synthesis_model: nn}"],
            "base_pipeline.stages[0].aggregation.synthesis_model: unknown model 'nn' in stage 'a'",
        ),
        (
            ["{id: a, models: [m, m], aggregation: custom_template, template: '{{ answers.nobody }}'}"],
            "base_pipeline.stages[0].aggregation.template: unknown variable 'answers.nobody'; known: m, m_2",
        ),
        (
            [
                "{id: draft, model: m}",
                "{id: b, models: [m], aggregation: custom_template, template: '{{ inputs.daft }}'}",
            ],
            "base_pipeline.stages[1].aggregation.template: unknown variable 'inputs.daft'; did you mean 'draft'?",
        ),
    ],
)
def test_name_that_is_nowhere_is_refused_with_its_key_path(project: Project, stages: list[str], problem: str) -> None:
    models = "models: {m: {file: m.gguf}, mistral: {file: n.gguf}, gone: {file: gone.gguf}}"
    with pytest.raises(PlanError) as refusal:
        plan(project, models, *stages)
    assert str(refusal.value).startswith(f"{project.path}/config/pipeline.yaml: {problem}")


def test_missing_model_is_named_with_its_path_and_the_reason(project: Project) -> None:
    with pytest.raises(PlanError) as refusal:
        plan(project, "models: {gone: {file: gone.gguf}}", "{id: a, model: gone}")
    assert str(refusal.value).endswith(f"not usable: {project.path}/models/gone.gguf: the file is missing")


def test_missing_model_that_the_base_requires_blocks_the_base_and_nothing_else(project: Project) -> None:
    models = "models: {m: {file: m.gguf}, gone: {file: gone.gguf, required_for_base: true}}"
    with pytest.raises(PlanError, match=r"base_pipeline: model 'gone' is required_for_base: .*gone\.gguf: the file is"):
        plan(project, models, "{id: a, model: m}")
    assert plan(project, models, "{id: a, model: m}", pipeline="other").final == "a"


def test_synthesis_is_a_call_with_parameters_of_its_own_over_those_of_the_stage(project: Project) -> None:
    planned = plan(
        project,
        TWO_MODELS,
        "{id: a, models: [m, m], generation: {temperature: 0.5, top_k: 9, seed: 3}, aggregation: {type: synthesis, "
        "synthesis_model: n, instructions: Merge., generation: {temperature: 0}}}",
    )
    aggregation = planned.stages[0].aggregation
    assert aggregation is not None
    assert aggregation.synthesis is not None
    assert (aggregation.synthesis.model, aggregation.synthesis.instructions) == ("n", "Merge.")
    assert aggregation.synthesis.sampling == SamplingParams(temperature=0, top_k=9, seed=3)
    assert [call.model for call in planned.calls] == ["m", "m", "n"]


def test_names_of_one_file_share_one_load(project: Project) -> None:
    models = "models: {m: {file: m.gguf}, bold: {file: m.gguf, overrides: {temperature: 2}}}"
    first, second = plan(project, models, "{id: a, models: [m, bold]}").calls
    assert first.load == second.load
    assert Path(first.load.path) == project.path / "models" / "m.gguf"


@pytest.mark.parametrize(("stage", "retries"), [("", 2), ("retries: 0", 0), ("retries: 5", 5)])
def test_stage_may_have_retries_of_its_own(project: Project, stage: str, retries: int) -> None:
    assert plan(project, ONE_MODEL, f"{{id: a, model: m, {stage}}}").stages[0].retries == retries


def test_printed_plan_shows_stages_members_parameters_and_the_one_that_answers(project: Project) -> None:
    text = plan_text(
        plan(project, ONE_MODEL, "{id: draft, model: m}", "{id: vote, models: [m, m], generation: {seed: 5}}")
    )
    draft, vote = text.split("\n\n")[1:]
    assert draft.startswith("1. draft   reads question   hands on answer_only\n")
    assert vote.startswith("2. vote   reads question, draft   hands on answer_only   ← answer\n")
    for part in ("m_2 (m.gguf)", "temperature 0.8", "seed 6", "max_tokens 512", "n_ctx 512", "concat"):
        assert part in vote


def test_samples_are_so_many_answers_with_seeds_of_their_own(project: Project) -> None:
    (stage,) = plan(project, ONE_MODEL, "{id: x, model: m, samples: 3, generation: {seed: 7}}").stages
    assert [call.member for call in stage.calls] == ["m", "m_2", "m_3"]
    assert [call.sampling.seed for call in stage.calls] == [7, 8, 9]
    assert stage.aggregation


def test_samples_of_a_member_go_before_those_of_its_stage(project: Project) -> None:
    models = "{id: x, models: [m, {model: m, samples: 1, generation: {temperature: 2}}], samples: 2}"
    (stage,) = plan(project, ONE_MODEL, models).stages
    assert [call.sampling.temperature == 2 for call in stage.calls] == [False, False, True]


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        (
            "{id: x, type: single, model: m, samples: 2}",
            "type 'single' is one answer; with 'samples'",
        ),
        ("{id: x, model: m, samples: 0}", "samples: input should be greater than or equal to 1"),
        (
            "{id: x, model: m, generation: {flash_attention: false, kv_type: q8_0}}",
            "kv_type q8_0 needs flash attention",
        ),
        ("{id: x, model: m, generation: {logit_bias: {x: 101}}}", "logit_bias: 'x': 101: expected a text, and a bias"),
    ],
)
def test_wrong_samples_bias_and_attention_are_refused(project: Project, stage: str, problem: str) -> None:
    with pytest.raises((ConfigError, PlanError), match=re.escape(problem)):
        plan(project, ONE_MODEL, stage)


SEEDED = "generation: {temperature: 1.0, seed: 3}"


@pytest.mark.parametrize(
    ("of_pipeline", "of_stage", "is_cached"),
    [
        ("", SEEDED, False),
        ("cache: true", SEEDED, True),
        ("cache: true", f"{SEEDED}, cache: false", False),
        ("", f"{SEEDED}, cache: true", True),
        ("", "generation: {temperature: 0}, cache: true", True),
        ("cache: true", "generation: {temperature: 1.0}", False),
    ],
)
def test_answers_that_come_again_are_cached_where_stage_or_pipeline_says_so(
    project: Project, of_pipeline: str, of_stage: str, is_cached: bool
) -> None:
    stage = f"{{id: a, model: m, {of_stage}}}"
    assert plan(project, ONE_MODEL, stage, more=of_pipeline).stages[0].calls[0].cache is is_cached


def test_stage_that_asks_for_a_cache_of_drawn_answers_is_refused(project: Project) -> None:
    with pytest.raises(
        PlanError, match=r"stages\[0\]\.model: cache: true needs an answer that comes again; set a seed"
    ):
        plan(project, ONE_MODEL, "{id: a, model: m, generation: {temperature: 1.0}, cache: true}")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{id: a, models: [m, m], aggregation: ranked}", "ranked needs at least 3 members"),
        ("{id: a, model: m, samples: 2, aggregation: {type: self_consistency}}", None),
        ("{id: a, models: [m], aggregation: self_consistency}", "self_consistency takes one model with samples"),
        (
            "{id: a, models: [m, m], aggregation: {type: weighted_vote, weights: {mm: 2}}}",
            "aggregation.weights: stage 'a' has no member 'mm'; did you mean 'm'?",
        ),
        ("{id: a, models: [m], aggregation: cascade}", "cascade needs at least 2 members"),
        (
            "{id: a, models: [m, m], aggregation: {type: cascade, at_least: 3}}",
            "aggregation.at_least: 3 of 2 members cannot be",
        ),
        ("{id: a, models: [m, m], aggregation: judge, judge_model: x}", "aggregation.judge_model: unknown model 'x'"),
    ],
)
def test_aggregation_fits_its_members(project: Project, stage: str, message: str | None) -> None:
    if message is None:
        assert plan(project, ONE_MODEL, stage).stages[0].aggregation
        return
    with pytest.raises(PlanError) as refused:
        plan(project, ONE_MODEL, stage)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("aggregation", "stage", "rule"),
    [
        ("cascade", "", StopRule(0.6, 2)),
        ("{type: cascade, threshold: 1, at_least: 3, pattern: x}", "", StopRule(1, 3, "x")),
        ("cascade", "quorum: 1", StopRule(0.6, 2)),
        ("cascade", "quorum: 3", StopRule(0.6, 3)),  # so many must answer
    ],
)
def test_cascade_stops_by_its_own_rule_and_not_below_the_quorum(
    project: Project, aggregation: str, stage: str, rule: StopRule
) -> None:
    (planned,) = plan(
        project, ONE_MODEL, f"{{id: a, model: m, samples: 4, aggregation: {aggregation}, {stage}}}"
    ).stages
    assert planned.stop == rule
    assert [call.member for call in planned.surely_asked] == ["m", "m_2", "m_3"][: rule.at_least]


def test_printed_cascade_says_who_is_asked_when(project: Project) -> None:
    text = plan_text(
        plan(project, TWO_MODELS, "{id: a, models: [m, n, m], aggregation: {type: cascade, threshold: 0.75}}")
    )
    labels = [line.split(" (")[0].strip() for line in text.splitlines()[3:]]
    assert labels == [
        "├─ m",
        "├─ then n",
        "├─ then, if they disagree, m_2",
        "└─ cascade: asks on until 2 or more have answered and agreement is 0.75",
    ]


@pytest.mark.parametrize(
    ("stage", "quorum"),
    [("models: [m, m]", 2), ("models: [m, m], quorum: 1", 1), ("model: m, samples: 5, quorum: 3", 3), ("model: m", 1)],
)
def test_all_members_must_answer_unless_a_quorum_says_less(project: Project, stage: str, quorum: int) -> None:
    assert plan(project, ONE_MODEL, f"{{id: a, {stage}}}").stages[0].quorum == quorum


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("models: [m, m], quorum: 3", r"stages\[0\]\.quorum: 3 of 2 members cannot be"),
        ("model: m, quorum: 1", r"stages\[0\]\.quorum: 1 of 1 members cannot be"),
    ],
)
def test_quorum_that_cannot_be_is_refused(project: Project, stage: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(project, ONE_MODEL, f"{{id: a, {stage}}}")


def test_member_has_the_shorter_of_two_time_limits(project: Project) -> None:
    stage = "{id: a, models: [m, {model: m, generation: {timeout_s: 2}}], member_timeout_s: 5}"
    assert [call.sampling.timeout_s for call in plan(project, ONE_MODEL, stage).calls] == [5.0, 2.0]


@pytest.mark.parametrize("aggregation", ["{type: synthesis, synthesis_model: n, system_prompt: S}", "concat"])
def test_every_answer_of_a_stage_is_held_to_its_schema(project: Project, aggregation: str) -> None:
    planned = plan(
        project,
        TWO_MODELS,
        f"{{id: a, models: [m, n], response_schema: {{type: integer}}, think: true, aggregation: {aggregation}}}",
        "{id: b, model: m}",
    )
    *held, free = planned.calls
    assert len(held) == (3 if "synthesis" in aggregation else 2)
    for call in held:
        assert call.constraint == schema_constraint({"type": "integer"}, think=True, on_truncation="complete")
    assert free.constraint is None
    assert plan_text(planned).count("by its response_schema") == len(held)


def test_synthesis_takes_neither_prompt_nor_instructions_of_its_stage(project: Project) -> None:
    stage = (
        "{id: a, models: [m], system_prompt: S, instructions: I, aggregation: {type: synthesis, synthesis_model: n}}"
    )
    _, synthesis = plan(project, TWO_MODELS, stage).calls
    assert (synthesis.system_prompt, synthesis.instructions) == (None, None)


SEEING = "models: {m: {file: m.gguf}, v: {file: n.gguf, mmproj: eyes.gguf}}"


def test_stage_looks_at_images_with_models_that_see(project: Project) -> None:
    eyes = write_tiny_mmproj(project.path / "models" / "eyes.gguf")
    made = plan(
        project,
        SEEING,
        "{id: look, model: v, images: question}",
        "{id: compare, models: [v, v], images: [question, map.png, 'https://example.org/a.png']}",
        "{id: say, model: m}",
    )
    assert [stage.images for stage in made.stages] == [
        ("question",),
        ("question", "map.png", "https://example.org/a.png"),
        (),
    ]
    assert [call.load.mmproj for call in made.calls] == [str(eyes), str(eyes), str(eyes), None]
    assert "looks at question, map.png, https://example.org/a.png" in plan_text(made)


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("{id: look, model: m, images: question}", "stages[0].model"),
        ("{id: look, models: [v, m], images: a.png}", "stages[0].models[1]"),
    ],
)
def test_model_that_cannot_see_is_refused(project: Project, stage: str, key: str) -> None:
    write_tiny_mmproj(project.path / "models" / "eyes.gguf")
    with pytest.raises(PlanError) as refusal:
        plan(project, SEEING, stage)
    said = f"{key}: model 'm' cannot see images; give it an 'mmproj' in models.yaml"
    assert str(refusal.value) == f"{project.path}/config/pipeline.yaml: base_pipeline.{said}"


def test_who_merges_the_answers_of_a_stage_need_not_see(project: Project) -> None:
    write_tiny_mmproj(project.path / "models" / "eyes.gguf")
    stage = "{id: look, models: [v, v], images: question, aggregation: {type: synthesis, synthesis_model: m}}"
    assert [call.model for call in plan(project, SEEING, stage).calls] == ["v", "v", "m"]
