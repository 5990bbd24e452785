"""A pipeline is added to pipeline.yaml, and all else in it stays."""

from pathlib import Path

import pytest

from llm_core.errors import ConfigError, InputError
from llm_core.pipeline import PipelineSpec, load_pipeline, load_pipelines
from llm_core.pipeline_yaml import as_written, save_pipeline
from tests.conftest import REPOSITORY

FILE = """\
# What is asked of whom.
version: 1

base_pipeline:
  execution_mode: auto   # side by side where memory allows
  stages:
    - {id: draft, model: "a"}   # short and sharp

pipelines:
  # Five draws.
  vote:
    stages:
      - id: vote
        models: [a, a]
        aggregation: majority_vote
"""
SPEC = PipelineSpec.model_validate(
    {
        "name": "manual",
        "stages": [
            {"id": "draft", "model": "a", "generation": {"temperature": 0.2}},
            {"id": "panel", "models": ["a", {"model": "b", "samples": 2}], "aggregation": "majority_vote"},
        ],
    }
)


def saved(tmp_path: Path, text: str, name: str = "mine") -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    save_pipeline(path, name, SPEC)
    return path


def test_saved_pipeline_is_loaded_as_it_was(tmp_path: Path) -> None:
    path = saved(tmp_path, FILE)
    assert load_pipeline(path, "mine") == SPEC.model_copy(update={"name": "mine"})
    assert list(load_pipelines(path)) == ["base", "vote", "mine"]


def test_every_line_that_stood_there_still_does(tmp_path: Path) -> None:
    text = saved(tmp_path, FILE).read_text()
    assert text.startswith(FILE)
    assert "    stages:\n      - id: draft\n        model: a\n" in text.removeprefix(FILE)


def test_example_file_keeps_its_comments_and_pipelines(tmp_path: Path) -> None:
    example = (REPOSITORY / "config" / "pipeline.yaml").read_text()
    path = saved(tmp_path, example)
    comments = [line for line in example.splitlines() if "#" in line]
    assert [line for line in path.read_text().splitlines() if "#" in line] == comments
    expected = load_pipelines(REPOSITORY / "config" / "pipeline.yaml")
    assert load_pipelines(path) == expected | {"mine": SPEC.model_copy(update={"name": "mine"})}


@pytest.mark.parametrize(
    "text", ["yes", "off", "010", "1:30", "null", "# no comment", "a: b", "two\nlines: x", '“é” \t"q"']
)
def test_text_that_yaml_would_take_for_something_else_stays_a_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(FILE)
    stage = {"id": "draft", "model": "a", "system_prompt": text}
    save_pipeline(path, "mine", PipelineSpec.model_validate({"stages": [stage]}))
    assert load_pipeline(path, "mine").stages[0].system_prompt == text


def test_file_without_named_pipelines_gets_its_first(tmp_path: Path) -> None:
    path = saved(tmp_path, "base_pipeline: {stages: [{id: a, model: m}]}\n")
    assert list(load_pipelines(path)) == ["base", "mine"]


@pytest.mark.parametrize("name", ["vote", "base", "manual", "batch"])
def test_name_that_is_taken_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"there is a pipeline '{name}' already"):
        saved(tmp_path, FILE, name)
    assert (tmp_path / "pipeline.yaml").read_text() == FILE


@pytest.mark.parametrize("name", ["", "a b", "7up", "x/y"])
def test_name_that_no_deployment_could_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a pipeline"):
        saved(tmp_path, FILE, name)


def test_file_that_is_wrong_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stages"):
        saved(tmp_path, "base_pipeline: {}\n")
    assert (tmp_path / "pipeline.yaml").read_text() == "base_pipeline: {}\n"


def test_only_what_is_set_is_written() -> None:
    assert as_written(SPEC) == {
        "stages": [
            {"id": "draft", "model": "a", "generation": {"temperature": 0.2}},
            {
                "id": "panel",
                "models": ["a", {"model": "b", "samples": 2}],
                "aggregation": {"type": "majority_vote"},
            },
        ]
    }
