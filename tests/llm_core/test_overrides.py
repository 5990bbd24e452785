"""`--set stage.param=value`."""

import pytest

from llm_core.errors import ConfigError, InputError
from llm_core.overrides import override
from llm_core.pipeline import PipelineSpec

SPEC = PipelineSpec.model_validate(
    {
        "name": "two",
        "stages": [
            {"id": "draft", "model": "m", "generation": {"temperature": 0.5, "top_p": 0.9}},
            {"id": "v1.panel", "models": ["m", {"model": "n", "generation": {"seed": 4}, "instructions": "Be sharp."}]},
        ],
    }
)


@pytest.mark.parametrize(
    ("assignment", "param", "value"),
    [
        ("draft.temperature=0.2", "temperature", 0.2),
        ("draft.max_tokens=9", "max_tokens", 9),
        ("draft.stop=END", "stop", ("END",)),
        ("draft.stop=[a, '=b']", "stop", ("a", "=b")),
        ("draft.temperature=", "temperature", None),
    ],
)
def test_assignment_changes_one_parameter_of_one_stage(assignment: str, param: str, value: object) -> None:
    changed = override(SPEC, [assignment])
    before, after = SPEC.stages[0].generation.model_dump(), changed.stages[0].generation.model_dump()
    assert after == before | {param: value}
    assert changed.stages[1] == SPEC.stages[1]


@pytest.mark.parametrize("param", ["system_prompt", "instructions"])
def test_texts_are_taken_as_they_are(param: str) -> None:
    changed = override(SPEC, [f"draft.{param}=[Say: a = b, "])
    assert getattr(changed.stages[0], param) == "[Say: a = b, "


def test_of_two_assignments_to_one_parameter_the_later_holds() -> None:
    changed = override(SPEC, ["draft.seed=1", "draft.top_k=5", "draft.seed=2"])
    assert (changed.stages[0].generation.seed, changed.stages[0].generation.top_k) == (2, 5)


def test_assignment_goes_before_what_a_member_sets_itself() -> None:
    changed = override(SPEC, ["v1.panel.seed=7", "v1.panel.instructions=Be kind."]).stages[1]
    for member in changed.members:
        assert member.generation.over(changed.generation).seed == 7
        assert (member.instructions or changed.instructions) == "Be kind."


def test_pipeline_that_is_overridden_stays_as_it_was() -> None:
    before = SPEC.model_dump()
    override(SPEC, ["draft.temperature=0.2"])
    assert SPEC.model_dump() == before


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("temperature=1", "expected stage.param=value, such as draft.temperature=0.2"),
        ("draft.temperature", "expected stage.param=value, such as draft.temperature=0.2"),
        ("", "expected stage.param=value, such as draft.temperature=0.2"),
        ("drft.temperature=1", "no stage 'drft'; did you mean 'draft'?"),
        (".temperature=1", "no stage ''; known: draft, v1.panel"),
        ("draft.temprature=1", "no parameter 'temprature'; did you mean 'temperature'?"),
        ("draft.model=n", "no parameter 'model'"),
        ("draft.stop=[a", "the value cannot be read; quote it"),
        ("draft.aggregation=concat", "stage 'draft' has one answer; there is nothing to merge"),
        ("v1.panel.aggregation=subprocess:getoutput", "an aggregation of your own stands in pipeline.yaml"),
    ],
)
def test_assignment_that_cannot_be_made_is_refused(assignment: str, problem: str) -> None:
    with pytest.raises(InputError) as refusal:
        override(SPEC, [assignment])
    assert str(refusal.value).startswith(f"--set {assignment}: {problem}")


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("draft.temperature=-1", "input should be greater than or equal to 0, not -1"),
        ("draft.temperature=hot", "input should be a valid number, unable to parse string as a number, not 'hot'"),
        ("draft.max_tokens=0", "input should be greater than or equal to 1, not 0"),
    ],
)
def test_value_that_a_parameter_does_not_take_is_refused(assignment: str, problem: str) -> None:
    param = assignment.partition("=")[0].removeprefix("draft.")
    with pytest.raises(ConfigError) as refusal:
        override(SPEC, [assignment])
    assert str(refusal.value) == f"--set {assignment}: stages[0].generation.{param}: {problem}"


def test_other_aggregation_leaves_what_only_the_one_before_knows() -> None:
    votes = {"type": "cascade", "pattern": r"\d+", "threshold": 0.9}
    spec = PipelineSpec.model_validate({"stages": [{"id": "p", "models": ["m", "n"], "aggregation": votes}]})
    changed = override(spec, ["p.aggregation=Majority-Vote"]).stages[0].aggregation
    assert changed
    assert (changed.type, changed.pattern, changed.threshold) == ("majority_vote", r"\d+", None)


def test_how_far_a_cascade_goes_can_be_set() -> None:
    spec = override(SPEC, ["v1.panel.aggregation=cascade", "v1.panel.threshold=0.9", "v1.panel.at_least=1"])
    aggregation = spec.stages[1].aggregation
    assert aggregation
    assert (aggregation.threshold, aggregation.at_least) == (0.9, 1)
    with pytest.raises(ConfigError, match="'threshold' belongs to cascade, not to 'concat'"):
        override(SPEC, ["v1.panel.threshold=0.9"])
