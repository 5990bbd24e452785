"""Members that rank each other, a judge, votes on schemas: real model, real Prefect server."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import compile_flow
from flows.replay_command import replay_session
from flows.result import PipelineResult
from llm_core.pipeline import load_pipeline
from llm_core.settings import Settings
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 1024, max_tokens: 12, temperature: 0}}
  b: {file: b.gguf, overrides: {n_ctx: 1024, max_tokens: 12, temperature: 0.8, seed: 1}}
"""


@pytest.fixture
def two_models(project: Project, smollm: Path, variants: dict[str, Path]) -> Project:
    project.models(MODELS)
    project.link_model(smollm, "a.gguf")
    project.link_model(variants["Q8_0"], "b.gguf")
    return project


async def run(project: Project, stage: str, question: str = "What is ice?") -> tuple[PipelineResult, dict[str, Any]]:
    """The result, and the evidence of the stage's aggregation."""
    project.pipeline(f"base_pipeline: {{stages: [{{id: panel, {stage}}}]}}")
    result: PipelineResult = await compile_flow(load_pipeline(Settings().pipeline_file))(question=question)
    merged = json.loads((result.session_path / "step1_aggregation.json").read_text())
    return result, merged["aggregation"]


async def test_small_models_rank_each_other_readably(two_models: Project, capsys: pytest.CaptureFixture[str]) -> None:
    result, evidence = await run(two_models, "models: [a, b, b], aggregation: ranked")
    assert {member: set(ranking) for member, ranking in evidence["rankings"].items()} == {
        "a": {"b", "b_2"},
        "b": {"a", "b_2"},
        "b_2": {"a", "b"},
    }
    assert result.answer in evidence["candidates"].values()
    assert evidence["reply_tokens"] > 0
    capsys.readouterr()
    assert replay_session("session_001", Settings(), verify=True, as_json=True) == 3
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["1 panel: ranked"]["reason"] == "the members' rankings are taken as they were"


async def test_small_judge_chooses_readably_and_is_replayed(
    two_models: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    result, evidence = await run(two_models, "models: [a, b], aggregation: judge, judge_model: a")
    assert result.answer == evidence["candidates"][evidence["chosen"]]
    assert evidence["replies"]["panel: judge"] in ("1", "2")
    capsys.readouterr()
    replay_session("session_001", Settings(), verify=True, as_json=True)
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["1 panel: judge"]["outcome"] == "identical"


async def test_vote_over_a_schema_keeps_the_value_of_the_winner(two_models: Project) -> None:
    schema = "{type: object, properties: {cold: {type: boolean}}, required: [cold], additionalProperties: false}"
    stage = f"model: b, samples: 3, aggregation: self_consistency, response_schema: {schema}"
    result, evidence = await run(two_models, stage)
    merged = json.loads((result.session_path / "step1_aggregation.json").read_text())
    assert merged["parsed"] == json.loads(result.answer)
    assert sum(evidence["counts"].values()) == 3
    assert len(evidence["agreed"]) == max(evidence["counts"].values())


async def test_candidates_too_long_for_the_synthesis_model_are_summarised(two_models: Project) -> None:
    two_models.models(MODELS + "  small: {file: a.gguf, overrides: {n_ctx: 256, max_tokens: 12, temperature: 0}}\n")
    stage = "models: [a, b, b], generation: {max_tokens: 80}, aggregation: {type: synthesis, synthesis_model: small"
    result, evidence = await run(two_models, f"{stage}, on_overflow: summarise, generation: {{max_tokens: 12}}}}")
    assert set(evidence["summaries"]) == {"a", "b", "b_2"}
    assert result.answer


async def test_fields_are_voted_on_by_how_sure_the_models_were(two_models: Project) -> None:
    properties = "{cold: {type: boolean}, colour: {enum: [white, blue, clear]}}"
    schema = f"{{type: object, properties: {properties}, required: [cold, colour], additionalProperties: false}}"
    stage = f"models: [a, b, b], generation: {{max_tokens: 30}}, aggregation: field_vote, response_schema: {schema}"
    result, evidence = await run(two_models, f"{stage}, instructions: Describe it as JSON.")
    assert set(evidence["fields"]) == {"cold", "colour"}
    for votes in evidence["fields"].values():
        assert all(0 < weight <= 3 for weight in votes.values())
    answer = json.loads(result.answer)
    assert answer == {key: json.loads(max(votes, key=votes.__getitem__)) for key, votes in evidence["fields"].items()}
    merged = json.loads((result.session_path / "step1_aggregation.json").read_text())
    assert merged["parsed"] == answer
    member = json.loads((result.session_path / "step1_a.json").read_text())
    assert len(member["logprobs"].split()) == len(member["tokens"].split())
