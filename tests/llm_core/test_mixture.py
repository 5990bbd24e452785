"""A stage in layers becomes a stage for each, of which the last has its id."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from llm_core.call_params import Constraint
from llm_core.errors import ConfigError
from llm_core.merge import merged
from llm_core.mixture import LAYER_INSTRUCTIONS, all_answers, layer_instructions
from llm_core.overrides import override
from llm_core.pipeline import PipelineSpec, load_pipeline
from llm_core.plan import Call, Plan
from llm_core.plan_text import plan_text
from llm_core.planner import make_plan
from llm_core.registry import load_registry
from llm_core.rerun import downstream
from llm_core.session_records import StepRecord
from llm_core.settings import Settings
from tests.conftest import Project
from tests.llm_core.tiny_gguf import write_tiny_gguf

MODELS = "models: {m: {file: m.gguf}, n: {file: m.gguf}}"
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: m}
    - {id: panel, models: [m, {model: n, instructions: Be sharp.}], layers: 3, quorum: 1, approve: true,
       output_mode: input_plus_answer, aggregation: majority_vote}
    - {id: final, model: n}
"""
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def spec(project: Project) -> PipelineSpec:
    write_tiny_gguf(project.path / "models" / "m.gguf")
    project.models(MODELS)
    return load_pipeline(project.pipeline(PIPELINE))


def planned(spec: PipelineSpec) -> Plan:
    return make_plan(spec, load_registry(Settings()))


def test_each_layer_reads_what_the_stage_reads_and_the_layer_before(spec: PipelineSpec) -> None:
    stages = planned(spec).stages
    assert [(stage.number, stage.id, stage.inputs) for stage in stages] == [
        (1, "draft", ()),
        (2, "panel (layer 1)", ("draft",)),
        (3, "panel (layer 2)", ("draft", "panel (layer 1)")),
        (4, "panel", ("draft", "panel (layer 2)")),
        (5, "final", ("panel",)),
    ]
    assert [[call.member for call in stage.calls] for stage in stages[1:4]] == [["m", "n"]] * 3
    assert planned(spec).final == "final"


def test_only_the_last_layer_is_merged_approved_and_handed_on_as_the_stage_says(spec: PipelineSpec) -> None:
    layers = planned(spec).stages[1:4]
    kinds = [stage.aggregation.kind for stage in layers if stage.aggregation]
    assert kinds == ["all answers", "all answers", "majority_vote"]
    assert [stage.approve for stage in layers] == [False, False, True]
    assert [stage.output_mode for stage in layers] == ["answer_only", "answer_only", "input_plus_answer"]
    assert [stage.quorum for stage in layers] == [1, 1, 1]


def test_members_are_told_what_to_do_with_the_answers_after_their_own_instructions(spec: PipelineSpec) -> None:
    first, second, last = planned(spec).stages[1:4]
    assert [call.instructions for call in first.calls] == [None, "Be sharp."]
    for later in (second, last):
        assert [call.instructions for call in later.calls] == [
            LAYER_INSTRUCTIONS,
            f"Be sharp.\n\n{LAYER_INSTRUCTIONS}",
        ]


def test_stage_may_have_layer_instructions_of_its_own() -> None:
    assert layer_instructions("Be sharp.", "Take the best.") == "Be sharp.\n\nTake the best."
    assert layer_instructions("Be sharp.", "") == "Be sharp."
    assert layer_instructions(None, None) == LAYER_INSTRUCTIONS


def test_next_layer_sees_answers_by_number_and_not_by_name() -> None:
    assert all_answers({"llama3": "Ice.", "qwen": "Water."}) == "Answer 1:\nIce.\n\nAnswer 2:\nWater."


def test_one_layer_is_a_stage_like_any_other(spec: PipelineSpec) -> None:
    once = spec.model_copy(update={"stages": tuple(s.model_copy(update={"layers": 1}) for s in spec.stages)})
    assert [stage.id for stage in planned(once).stages] == ["draft", "panel", "final"]


def test_parameters_are_set_for_all_layers_by_the_id_of_the_stage(spec: PipelineSpec) -> None:
    stages = planned(override(spec, ["panel.temperature=0.3"])).stages
    hot = [stage.id for stage in stages if {call.sampling.temperature for call in stage.calls} == {0.3}]
    assert hot == ["panel (layer 1)", "panel (layer 2)", "panel"]


@pytest.mark.parametrize(
    ("from_stage", "again"),
    [
        ("draft", {"draft", "panel (layer 1)", "panel (layer 2)", "panel", "final"}),
        ("panel", {"panel (layer 1)", "panel (layer 2)", "panel", "final"}),
        ("panel (layer 2)", {"panel (layer 2)", "panel", "final"}),
        ("final", {"final"}),
    ],
)
def test_rerun_from_the_stage_is_from_its_first_layer(spec: PipelineSpec, from_stage: str, again: set[str]) -> None:
    assert downstream(planned(spec), from_stage) == again


def test_stage_hands_on_nothing_of_its_earlier_layers(spec: PipelineSpec) -> None:
    last = planned(spec).stages[3]
    texts = {"draft": "A draft.", "panel (layer 2)": "Answer 1:\nSteam."}
    answers = [
        StepRecord(id=m, number=4, stage="panel", member=m, text="Ice.", started=NOON, ended=NOON) for m in ("m", "n")
    ]
    assert merged(last, "What is it?", answers, texts, _nobody).output == "A draft.\n\nIce."
    templated = replace(last, aggregation=replace(last.aggregation, kind="custom_template", template="{{ inputs }}"))
    assert merged(templated, "What is it?", answers, texts, _nobody).text == "{'draft': 'A draft.'}"


def _nobody(call: Call, step: str, message: str, constraint: Constraint | None) -> StepRecord:
    raise AssertionError("no model is asked")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{id: a, model: m, layers: 2}", "'layers' needs several answers: 'models', or 'samples' of one model"),
        ("{id: a, models: [m, n], layers: 0}", "layers: input should be greater than or equal to 1, not 0"),
        ("{id: a, models: [m, n], layers: 11}", "layers: input should be less than or equal to 10, not 11"),
        ("{id: a, models: [m], layer_instructions: X}", "'layer_instructions' needs 'layers: 2' or more beside it"),
        (
            "{id: a, models: [m], layers: 2}, {id: a (layer 1), model: m}",
            "stages[1].id: 'a (layer 1)' is taken by a layer of 'a'",
        ),
    ],
)
def test_layers_that_cannot_be_are_one_line(project: Project, stages: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_pipeline(project.pipeline(f"base_pipeline: {{stages: [{stages}]}}"))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_printed_plan_shows_the_layers(spec: PipelineSpec) -> None:
    lines = [line for line in plan_text(planned(spec)).splitlines() if line[:1].isdigit() or "└─" in line]
    assert lines[2:5] == [
        "2. panel (layer 1)   reads question, draft   hands on answer_only",
        "   └─ all answers, for the next layer",
        "3. panel (layer 2)   reads question, draft, panel (layer 1)   hands on answer_only",
    ]
    assert lines[6] == "4. panel   reads question, draft, panel (layer 2)   hands on input_plus_answer"
