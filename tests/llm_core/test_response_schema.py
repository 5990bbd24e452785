"""`response_schema` and `grammar` of a stage, in each way they may be written, and what is wrong with them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_core.errors import ConfigError
from llm_core.pipeline import PipelineSpec, load_pipeline, load_valid_pipelines
from llm_core.pipeline_yaml import as_written, save_pipeline
from llm_core.stage_spec import StageSpec

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
MODELS = """
from enum import Enum
from pydantic import BaseModel, Field

class Mood(Enum):
    GOOD = "good"
    BAD = "bad"

class Person(BaseModel):
    name: str = Field(max_length=20)
    mood: Mood | None = None

class Team(BaseModel):
    leader: Person
    others: list[Person] = Field(max_length=3)

class Tagged(BaseModel):
    tags: set[str]

NUMBER = 3
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    return tmp_path / "config"


def stage(config: Path, written: str) -> StageSpec:
    path = config / "pipeline.yaml"
    path.write_text(f"base_pipeline:\n  stages:\n    - {{id: a, model: m, {written}}}\n")
    return load_pipeline(path).stages[0]


def test_schema_in_place_stays_as_it_is(config: Path) -> None:
    read = stage(config, f"response_schema: {json.dumps(CITY)}, think: true, on_truncation: error")
    assert (read.response_schema, read.think, read.on_truncation) == (CITY, True, "error")


@pytest.mark.parametrize("name", ["city.json", "schemas/city.json", "city.yaml"])
def test_schema_file_is_found_beside_pipeline_yaml(config: Path, name: str) -> None:
    (config / "schemas").mkdir()
    (config / name).write_text(json.dumps(CITY))
    assert stage(config, f"response_schema: {name}").response_schema == CITY


@pytest.mark.parametrize("folder", ["config", "."])
@pytest.mark.parametrize("name", ["{}.Team", "{}:Team"])
def test_pydantic_model_is_found_by_its_dotted_name(config: Path, folder: str, name: str) -> None:
    module = f"models_{abs(hash((str(config), folder, name)))}"
    (config.parent / folder / f"{module}.py").write_text(MODELS)
    before = list(sys.path)
    schema: Any = stage(config, f"response_schema: '{name.format(module)}'").response_schema
    assert sys.path == before
    assert schema["required"] == ["leader", "others"]
    assert schema["$defs"]["Mood"]["enum"] == ["good", "bad"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Person"]["additionalProperties"] is False, "fields that it does not have would be dropped"


def test_grammar_is_read_in_place_and_from_a_file(config: Path) -> None:
    (config / "answer.gbnf").write_text('root ::= "yes" | "no"')
    assert stage(config, "grammar: answer.gbnf").grammar == 'root ::= "yes" | "no"'
    assert stage(config, 'grammar: "start: /[0-9]+/"').grammar == "start: /[0-9]+/"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("response_schema: {properties: {a: {uniqueItems: true}}}", "properties.a.uniqueItems: cannot be enforced"),
        ("response_schema: {type: strin}", "type: 'strin' is not valid"),
        ("response_schema: {const: 2024-01-01}", "const: 2024-01-01 cannot stand in JSON; quote it"),
        ("response_schema: {enum: [.nan]}", "enum[0]: nan cannot stand in JSON; quote it"),
        ("response_schema: {properties: {on: {}}}", "properties: the key True is no text; quote it"),
        ("response_schema: gone.json", "config/gone.json: no such file; a path here is relative to"),
        ("response_schema: broken.json", "broken.json: Expecting"),
        ("response_schema: [1]", "[1] is not of type 'object', 'boolean'"),
        ("response_schema: 'a city'", "'a city' is no schema, no .json or .yaml file, and no package.module.Model"),
        ("response_schema: nowhere.Model", "nowhere.Model: ModuleNotFoundError: No module named 'nowhere'"),
        ("response_schema: broken_models_1.Gone", "broken_models_1.Gone: AttributeError: "),
        ("response_schema: broken_models_1.NUMBER", "broken_models_1.NUMBER is no pydantic model"),
        ("response_schema: broken_models_1.Tagged", "properties.tags.uniqueItems: cannot be enforced"),
        ("response_schema: false", "nothing satisfies it"),
    ],
)
def test_schema_that_cannot_be_used_is_one_line_with_file_and_key(config: Path, written: str, message: str) -> None:
    (config / "broken.json").write_text("{")
    (config / "broken_models_1.py").write_text(MODELS)
    with pytest.raises(ConfigError) as error:
        stage(config, written)
    head, _, rest = str(error.value).partition("response_schema: ")
    assert head == f"{config / 'pipeline.yaml'}: base_pipeline.stages[0]."
    assert message in rest
    assert "\n" not in rest


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("grammar: 'start: b'", 'stages[0].grammar: line 1, column 8: unknown name: "b"'),
        ("grammar: gone.lark", "stages[0].grammar: "),
        ("grammar: 'start: \"a\"', response_schema: {}", "takes either 'response_schema' or 'grammar', not both"),
        ("think: true", "'think' needs 'response_schema' or 'grammar' beside it"),
        ("on_truncation: error", "'on_truncation' needs 'response_schema' or 'grammar' beside it"),
        ("response_schema: {}, on_truncation: ignore", "stages[0].on_truncation: "),
        ("response_shema: {}", "unknown key 'response_shema'; did you mean 'response_schema'?"),
    ],
)
def test_keys_that_do_not_go_together_are_one_line(config: Path, written: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        stage(config, written)
    assert message in str(error.value)


def test_wrong_schema_blocks_its_own_pipeline_only(config: Path) -> None:
    path = config / "pipeline.yaml"
    (config / "city.json").write_text(json.dumps(CITY))
    path.write_text(
        "pipelines:\n"
        "  good: {stages: [{id: a, model: m, response_schema: city.json}]}\n"
        "  bad: {stages: [{id: a, model: m, response_schema: {nullable: true}}]}\n"
    )
    found, problems = load_valid_pipelines(path)
    assert found["good"].stages[0].response_schema == CITY
    assert problems["bad"] == f"{path}: pipelines.bad: stages[0].response_schema: nullable: unknown keyword"


def test_saved_pipeline_holds_the_schema_itself(config: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"on": {"const": None}, "1:30": {"enum": ["yes", None, 1.5, "2024-01-01"]}},
        "additionalProperties": False,
    }
    spec = PipelineSpec.model_validate(
        {"name": "x", "stages": [{"id": "a", "model": "m", "response_schema": schema, "on_truncation": "error"}]}
    )
    path = config / "pipeline.yaml"
    path.write_text("base_pipeline: {stages: [{id: a, model: m}]}\n")
    save_pipeline(path, "kept", spec)
    kept = load_pipeline(path, "kept").stages[0]
    assert (kept.response_schema, kept.on_truncation) == (schema, "error")
    assert "grammar" not in as_written(spec)["stages"][0]
