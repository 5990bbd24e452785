"""Stages whose answers are held to a schema: the values in the session, and reruns. Real model, real Prefect server."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.rerun import rerun
from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import ConstraintError
from llm_core.pipeline import load_pipeline
from llm_core.settings import Settings
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = "models: {a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 40, temperature: 0.8, seed: 1}}}"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}, "why": {"type": "string", "maxLength": 30}},
    "required": ["answer", "why"],
    "additionalProperties": False,
}
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: a, response_schema: verdict.json, think: true, generation: {max_tokens: 80}}
    - {id: vote, model: a, samples: 3, grammar: 'root ::= "yes" | "no"', aggregation: majority_vote}
    - id: judge
      model: a
      samples: 2
      response_schema: verdict.json
      aggregation: {type: synthesis, synthesis_model: a}
    - {id: free, model: a, generation: {max_tokens: 4}}
pipelines:
  counted: {stages: [{id: vote, model: a, samples: 3, response_schema: {enum: [1, 2]}, aggregation: majority_vote}]}
  strict: {stages: [{id: only, model: a, response_schema: verdict.json, on_truncation: error}]}
"""


@pytest.fixture
def verdicts(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "a.gguf")
    (project.path / "config" / "verdict.json").write_text(json.dumps(SCHEMA))
    return project


async def run(name: str = "base", question: str = "Is the sky blue?", **changes: Any) -> PipelineResult:
    spec = load_pipeline(Settings().pipeline_file, name).model_copy(update=changes)
    result: PipelineResult = await compile_flow(spec)(question=question)
    return result


def step(result: PipelineResult, file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.session_path / file).read_text())
    return found


async def test_values_stand_beside_the_texts_and_a_rerun_needs_no_schema_file(verdicts: Project) -> None:
    result = await run()
    members = ["step3_a.json", "step3_a_2.json", "step3_aggregation.json"]
    for saved in (step(result, name) for name in ("step1.json", *members)):
        assert saved["parsed"] == json.loads(saved["text"])
        assert set(saved["parsed"]) == {"answer", "why"}
    assert step(result, "step1.json")["reasoning"]
    assert step(result, "step2_aggregation.json")["text"] in ("yes", "no")
    assert step(result, "step4.json")["parsed"] is None

    (verdicts.path / "config" / "verdict.json").unlink()
    again = await rerun("session_001", "judge")
    assert set(step(again, "step3_aggregation.json")["parsed"]) == {"answer", "why"}
    snapshot = json.loads((result.session_path / "config_snapshot.json").read_text())
    assert snapshot["pipeline"]["stages"][0]["response_schema"] == SCHEMA
    assert "llguidance" in snapshot["versions"]


async def test_value_of_a_vote_is_that_of_the_answer_that_won(verdicts: Project) -> None:
    saved = step(await run("counted"), "step1_aggregation.json")
    assert saved["parsed"] in (1, 2)
    assert str(saved["parsed"]) == saved["text"]


async def test_cut_off_answer_is_marked_or_fails_its_step(verdicts: Project) -> None:
    verdicts.models(MODELS.replace("max_tokens: 40", "max_tokens: 3"))
    saved = step(await run("counted"), "step1_a.json")
    assert not saved["truncated"], "nothing could follow"
    with pytest.raises(
        PipelineFailed, match=r"step 'only: a' failed: .*the answer was cut off at max_tokens 3"
    ) as failure:
        await run("strict")
    assert isinstance(failure.value.cause, ConstraintError)


async def test_item_whose_answer_is_cut_off_is_a_row_with_an_error(verdicts: Project) -> None:
    verdicts.models(MODELS.replace("max_tokens: 40", "max_tokens: 3"))
    path = verdicts.path / "q.jsonl"
    path.write_text('{"question": "Is ice cold?"}\n{"question": "Is tea hot?"}\n')
    output = verdicts.path / "out.jsonl"
    await batch(path, "strict", output=output)
    errors = [json.loads(line)["result"]["error"] for line in output.read_text().splitlines()]
    assert len(errors) == 2
    assert all("the answer was cut off at max_tokens 3" in error for error in errors)
