"""The form of a manual pipeline: what it shows, and the pipeline it makes."""

from pathlib import Path
from typing import Any

import pytest

from llm_core.documents import validate
from llm_core.errors import ConfigError
from llm_core.manual_pipeline import ManualPipeline, ManualStage
from llm_core.pipeline import PipelineSpec
from tests.conftest import Project

TWO_STAGES = {
    "stages": [
        {"models": ["a"], "system_prompt": "Be brief.", "temperature": 0.2, "max_tokens": 50},
        {"id": "panel", "models": ["a", "b"], "aggregation": "synthesis", "synthesis_model": "b", "n_ctx": 512},
    ]
}


def made(form: dict[str, Any]) -> PipelineSpec:
    return validate(form, ManualPipeline, "manual").spec("sequential")


def test_form_makes_what_pipeline_yaml_would_say() -> None:
    written = {
        "name": "manual",
        "on_insufficient_memory": "sequential",
        "stages": [
            {
                "id": "stage1",
                "model": "a",
                "system_prompt": "Be brief.",
                "generation": {"temperature": 0.2, "max_tokens": 50},
            },
            {
                "id": "panel",
                "models": ["a", "b"],
                "generation": {"n_ctx": 512},
                "aggregation": {"type": "synthesis", "synthesis_model": "b"},
            },
        ],
    }
    assert made(TWO_STAGES) == PipelineSpec.model_validate(written)


def test_several_answers_of_one_model_are_merged() -> None:
    stage = made({"stages": [{"models": ["a"], "samples": 3, "aggregation": "majority_vote"}]}).stages[0]
    assert (stage.type, stage.members[0].samples) == ("multi", 3)
    assert stage.aggregation
    assert stage.aggregation.type == "majority_vote"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"stages": []}, "manual: stages: "),
        ({"stages": [{"modles": ["a"]}]}, "manual: stages[0]: unknown key 'modles'; did you mean 'models'?"),
        ({"stages": [{"models": ["a"], "temperature": 9}]}, "manual: stages[0].temperature: input should be less"),
        ({"stages": [{"models": ["a", "b"], "aggregation": "synthesis"}]}, "needs 'synthesis_model'"),
        ({"stages": [{"models": ["a"], "input_from": ["x"]}]}, "stages[0].input_from: no stage 'x' in this pipeline"),
        ({"stages": [{"id": "x", "models": ["a"]}, {"id": "x", "models": ["a"]}]}, "two stages have the id 'x'"),
    ],
)
def test_wrong_form_is_one_line_as_for_yaml(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made(form)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_form_offers_the_models_that_are_here_now(project: Project, smollm: Path) -> None:
    project.models("models: {here: {file: here.gguf}, gone: {file: gone.gguf}}")
    project.link_model(smollm, "here.gguf")
    offered = ManualPipeline.model_json_schema()["$defs"]["ManualStage"]["properties"]
    assert offered["models"]["items"]["enum"] == ["here"]
    assert offered["synthesis_model"]["enum"] == ["here"]
    project.link_model(smollm, "gone.gguf")
    offered = ManualPipeline.model_json_schema()["$defs"]["ManualStage"]["properties"]
    assert offered["models"]["items"]["enum"] == ["here", "gone"]


def test_every_field_is_explained_and_every_number_is_bounded() -> None:
    for name, field in ManualStage.model_json_schema()["properties"].items():
        assert field["title"], name
        assert field["description"], name
        assert "anyOf" not in field, name
        if field["type"] in ("number", "integer"):
            assert {"minimum", "exclusiveMinimum"} & set(field), name


def test_numbers_have_the_bounds_of_pipeline_yaml() -> None:
    fields = ManualStage.model_json_schema()["properties"]
    assert (fields["temperature"]["minimum"], fields["temperature"]["maximum"]) == (0, 5)
    assert (fields["top_p"]["exclusiveMinimum"], fields["top_p"]["maximum"]) == (0, 1)
    assert fields["n_ctx"]["minimum"] == 16
    assert fields["n_gpu_layers"]["minimum"] == -1
