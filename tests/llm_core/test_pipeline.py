"""pipeline.yaml as written becomes a PipelineSpec, or one line that says why not."""

from pathlib import Path

import pytest

from llm_core.errors import ConfigError
from llm_core.parameters import GenerationParams
from llm_core.pipeline import PipelineSpec, load_pipeline, load_pipelines
from llm_core.stage_spec import AggregationSpec, MemberSpec, StageSpec
from tests.conftest import REPOSITORY


def load(folder: Path, text: str) -> dict[str, PipelineSpec]:
    path = folder / "pipeline.yaml"
    path.write_text(text)
    return load_pipelines(path)


def stages(folder: Path, *written: str) -> tuple[StageSpec, ...]:
    return load(folder, "base_pipeline:\n  stages:\n" + "".join(f"    - {stage}\n" for stage in written))["base"].stages


def test_document_with_every_key_of_the_format_loads(tmp_path: Path) -> None:
    pipelines = load(
        tmp_path,
        """
        version: "1.0"
        base_pipeline:
          description: All of it.
          execution_mode: Sequential
          stages:
            - id: draft
              type: single
              model: llama3
              system_prompt: Be brief.
              instructions: Answer.
              generation: {temperature: 0.2, top_p: 0.9, max_tokens: 64, seed: 1, stop: "\\n", n_ctx: 99, timeout_s: 9}
              output_mode: question_and_answer
            - id: panel
              type: multi
              models: [llama3, {model: mistral, system_prompt: Be bold., generation: {seed: 7}}]
              input_from: draft
              output_mode: input_plus_answer
              aggregation: synthesis
              synthesis_model: llama3
              retries: 0
        pipelines:
          quick:
            stages: [{id: only, model: mistral}]
        """,
    )
    assert list(pipelines) == ["base", "quick"]
    assert pipelines["base"] == PipelineSpec(
        name="base",
        description="All of it.",
        execution_mode="sequential",
        stages=(
            StageSpec(
                id="draft",
                type="single",
                members=(MemberSpec(model="llama3"),),
                system_prompt="Be brief.",
                instructions="Answer.",
                generation=GenerationParams(
                    temperature=0.2, top_p=0.9, max_tokens=64, seed=1, stop=("\n",), n_ctx=99, timeout_s=9
                ),
                output_mode="question_and_answer",
            ),
            StageSpec(
                id="panel",
                type="multi",
                members=(
                    MemberSpec(model="llama3"),
                    MemberSpec(model="mistral", system_prompt="Be bold.", generation=GenerationParams(seed=7)),
                ),
                input_from=("draft",),
                output_mode="input_plus_answer",
                aggregation=AggregationSpec(type="synthesis", synthesis_model="llama3"),
                retries=0,
            ),
        ),
    )


def test_repository_pipelines_load() -> None:
    pipelines = load_pipelines(REPOSITORY / "config" / "pipeline.yaml")
    assert {name: [stage.id for stage in spec.stages] for name, spec in pipelines.items()} == {
        "base": ["draft", "critique", "panel"],
        "self-consistency": ["vote"],
        "summarise-and-criticise": ["summary", "criticism", "report"],
        "extract": ["facts"],
    }


@pytest.mark.parametrize(
    ("written", "type", "models"),
    [
        ("{id: s, type: single, model: a}", "single", ["a"]),
        ("{id: s, model: a}", "single", ["a"]),
        ("{id: s, type: multi, models: [a, b, a]}", "multi", ["a", "b", "a"]),
        ("{id: s, models: [a]}", "multi", ["a"]),
        ("{id: s, models: [{model: a}]}", "multi", ["a"]),
        ("{id: s, models: llama3}", "multi", ["llama3"]),
        ("{id: s, model: a, models: null, aggregation: null, input_from: null}", "single", ["a"]),
    ],
)
def test_type_follows_from_model_or_models(tmp_path: Path, written: str, type: str, models: list[str]) -> None:
    (stage,) = stages(tmp_path, written)
    assert (stage.type, [member.model for member in stage.members]) == (type, models)


@pytest.mark.parametrize(
    ("written", "aggregation"),
    [
        ("", AggregationSpec(type="concat")),
        ("aggregation: concat", AggregationSpec(type="concat")),
        ("aggregation: MAJORITY_VOTE", AggregationSpec(type="majority_vote")),
        ("aggregation: Majority-Vote", AggregationSpec(type="majority_vote")),
        ("aggregation: {type: Majority_Vote}", AggregationSpec(type="majority_vote")),
        ("aggregation: Synthesis, synthesis_model: b", AggregationSpec(type="synthesis", synthesis_model="b")),
        (
            "aggregation: {type: SYNTHESIS, synthesis_model: b, instructions: Merge.}",
            AggregationSpec(type="synthesis", synthesis_model="b", instructions="Merge."),
        ),
        (
            "aggregation: custom_template, template: '{{ question }}'",
            AggregationSpec(type="custom_template", template="{{ question }}"),
        ),
        (
            "aggregation: {type: CUSTOM_TEMPLATE, template: '{{ answers.a }}'}",
            AggregationSpec(type="custom_template", template="{{ answers.a }}"),
        ),
    ],
)
def test_aggregation_is_a_name_or_a_mapping_in_any_case(
    tmp_path: Path, written: str, aggregation: AggregationSpec
) -> None:
    (stage,) = stages(tmp_path, f"{{id: s, models: [a, b], {written}}}")
    assert stage.aggregation == aggregation


def test_single_stage_has_no_aggregation(tmp_path: Path) -> None:
    (stage,) = stages(tmp_path, "{id: s, model: a}")
    assert stage.aggregation is None


@pytest.mark.parametrize(
    ("written", "inputs"),
    [
        ("", ("second",)),
        ("input_from: first", ("first",)),
        ("input_from: [second, first]", ("second", "first")),
        ("input_from: [first, first]", ("first",)),
        ("input_from: question", ()),
        ("input_from: [question, first]", ("first",)),
        ("input_from: []", ()),
    ],
)
def test_stage_reads_what_input_from_says_or_the_stage_before(
    tmp_path: Path, written: str, inputs: tuple[str, ...]
) -> None:
    written = f"{{id: third, model: a, {written}}}"
    spec = load(tmp_path, f"base_pipeline: {{stages: [{{id: first, model: a}}, {{id: second, model: a}}, {written}]}}")[
        "base"
    ]
    assert spec.inputs_of(spec.stages[2]) == inputs
    assert spec.inputs_of(spec.stages[0]) == ()


def test_stages_that_wait_for_each_other_are_for_the_plan_to_refuse(tmp_path: Path) -> None:
    a, b = stages(tmp_path, "{id: a, model: m, input_from: b}", "{id: b, model: m, input_from: a}")
    assert (a.input_from, b.input_from) == (("b",), ("a",))


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("{model: m}", ".stages[0].id: this key is required"),
        ("{id: '', model: m}", ".stages[0].id: string should have at least 1 character"),
        ("{id: question, model: m}", ": stages[0].id: 'question' is taken by the question itself"),
        ("{id: s, modle: m}", ".stages[0]: unknown key 'modle'; did you mean 'model'?"),
        ("{id: s}", ".stages[0]: needs either 'model' or 'models'"),
        ("{id: s, model: m, models: [m]}", ".stages[0]: needs either 'model' or 'models', not both"),
        ("{id: s, type: single, models: [m]}", ".stages[0]: type 'single' takes 'model'"),
        ("{id: s, type: multi, model: m}", ".stages[0]: type 'multi' takes 'models'"),
        ("{id: s, type: many, model: m}", ".stages[0].type: input should be 'single' or 'multi', not 'many'"),
        ("{id: s, models: []}", ".stages[0]: models: expected a list of model names"),
        ("{id: s, models: 3}", ".stages[0]: models: expected a list of model names"),
        ("{id: s, model: [m]}", ".stages[0]: model: expected a model's name"),
        ("{id: s, models: [m, {modl: n}]}", ".stages[0]: models[1]: unknown key 'modl'; did you mean 'model'?"),
        ("{id: s, models: [m, 3]}", ".stages[0]: models[1]: input should be a valid dictionary"),
        (
            "{id: s, models: [{model: m, generation: {top_p: 0}}]}",
            ".stages[0]: models[0]: generation.top_p: input should be greater than 0, not 0",
        ),
        ("{id: s, model: m, instruction: x}", ".stages[0]: unknown key 'instruction'; did you mean 'instructions'?"),
        ("{id: s, model: m, temperature: 1}", ".stages[0]: 'temperature' belongs under 'generation:' of the stage"),
        (
            "{id: s, model: m, generation: {temperature: -1}}",
            ".stages[0].generation.temperature: input should be greater than or equal to 0, not -1",
        ),
        (
            "{id: s, model: m, generation: {temprature: 1}}",
            ".stages[0].generation: unknown key 'temprature'; did you mean 'temperature'?",
        ),
        ("{id: s, model: m, generation: {stop: [a, '']}}", ".stages[0].generation.stop: an empty stop string"),
        ("{id: s, model: m, input_from: drft}", ": stages[0].input_from: no stage 'drft' in this pipeline; known: s"),
        ("{id: s, model: m, output_mode: all}", ".stages[0].output_mode: input should be 'answer_only', "),
        (
            "{id: s, models: [m], aggregation: majority}",
            ".stages[0].aggregation.type: unknown aggregation 'majority'; did you mean 'majority_vote'?",
        ),
        ("{id: s, models: [m], aggregation: [concat]}", ".stages[0]: aggregation: expected a name or a mapping"),
        (
            "{id: s, models: [m], aggregation: synthesis}",
            "aggregation: aggregation 'synthesis' needs 'synthesis_model'",
        ),
        (
            "{id: s, models: [m], aggregation: custom_template}",
            "aggregation: aggregation 'custom_template' needs 'template'",
        ),
        (
            "{id: s, models: [m], aggregation: custom_template, template: '{{ anwers.m }}'}",
            "aggregation: template: unknown variable 'anwers'; did you mean 'answers'?",
        ),
        (
            "{id: s, models: [m], aggregation: concat, template: '{{'}",
            "aggregation: template: line 1: unexpected 'end of ",
        ),
    ],
)
def test_wrong_stage_is_refused_with_its_key_path(tmp_path: Path, written: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        stages(tmp_path, written)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path}/pipeline.yaml: base_pipeline")
    assert problem in message
    assert " more)" not in message, "one mistake is one problem"


def test_two_stages_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\[2\]\.id: two stages have the id 'a'"):
        stages(tmp_path, "{id: a, model: m}", "{id: b, model: m}", "{id: a, model: m}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("base_pipeline: {stages: []}", "base_pipeline.stages: the pipeline is empty; give it at least one stage"),
        ("base_pipeline: {stages: }", "base_pipeline.stages: the pipeline is empty; give it at least one stage"),
        ("base_pipeline: {}", "base_pipeline.stages: this key is required"),
        ("version: 1", "no pipeline: give 'base_pipeline' or 'pipelines'"),
        ("pipelines:", "no pipeline: give 'base_pipeline' or 'pipelines'"),
        ("base_pipline: {}", "unknown key 'base_pipline'; did you mean 'base_pipeline'?"),
        (
            "pipelines: {q: {execution_mode: fast, stages: [{id: a, model: m}]}}",
            "pipelines.q.execution_mode: input should be 'auto', 'parallel', 'sequential' or 'persistent', not 'fast'",
        ),
        (
            "base_pipeline: {stages: [{id: a, model: m}]}\npipelines: {base: {stages: [{id: a, model: m}]}}",
            "pipelines.base: this name is taken by 'base_pipeline'",
        ),
    ],
)
def test_wrong_document_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, text)
    assert str(refusal.value) == f"{tmp_path}/pipeline.yaml: {problem}"


@pytest.mark.parametrize("name", ["self-consistency", "self_consistency"])
def test_dash_of_a_name_may_be_written_as_an_underscore(name: str) -> None:
    assert load_pipeline(REPOSITORY / "config" / "pipeline.yaml", name).name == "self-consistency"


def test_unknown_pipeline_is_refused_with_the_near_name() -> None:
    with pytest.raises(ConfigError, match=r"no pipeline 'self-consistancy'; did you mean 'self-consistency'\?"):
        load_pipeline(REPOSITORY / "config" / "pipeline.yaml", "self-consistancy")


@pytest.mark.parametrize(
    ("aggregation", "message"),
    [
        ("majority", "unknown aggregation 'majority'"),
        ("judge", "aggregation 'judge' needs 'judge_model'"),
        ("weighted_vote", "aggregation 'weighted_vote' needs 'weights'"),
        ("{type: weighted_vote, weights: {a: -1}}", "weights.a: input should be greater than or equal to 0, not -1"),
        ("{type: weighted_vote, weights: {a: .inf}}", "weights.a: input should be a finite number, not inf"),
        ("{type: majority_vote, weights: {a: 1}}", "'weights' belongs to weighted_vote, not to 'majority_vote'"),
        ("{type: majority_vote, pattern: '('}", "pattern: no regular expression: missing ), unterminated subpattern"),
        ("{type: concat, pattern: x}", "'pattern' belongs to majority_vote or self_consistency or weighted_vote"),
        ("{type: cascade, threshold: 0}", "threshold: input should be greater than 0, not 0"),
        ("{type: cascade, threshold: 60}", "threshold: input should be less than or equal to 1, not 60"),
        ("{type: cascade, at_least: 0}", "at_least: input should be greater than or equal to 1, not 0"),
        ("{type: similarity, at_least: 2}", "'at_least' belongs to cascade, not to 'similarity'"),
        ("no.such.module:function", "aggregation 'no.such.module:function': ModuleNotFoundError: No module named 'no'"),
        ("'math:pi'", "aggregation 'math:pi' is no function"),
        ("'math:nothing'", "aggregation 'math:nothing': AttributeError"),
    ],
)
def test_aggregation_that_cannot_be_is_one_line(tmp_path: Path, aggregation: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        stages(tmp_path, f"{{id: a, models: [m, n], aggregation: {aggregation}}}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_fields_can_be_voted_on_only_where_there_is_a_schema(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\[0\]: aggregation 'field_vote' needs 'response_schema' beside it"):
        stages(tmp_path, "{id: a, models: [m, n], aggregation: field_vote}")
