"""`cache: true`: an identical call is answered from an earlier session. Real model, real Prefect server."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.result import PipelineResult
from llm_core.pipeline import load_pipeline
from llm_core.pool import ModelPool
from llm_core.session_files import load_session
from llm_core.session_history import delete_session
from llm_core.settings import Settings
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0}}
"""
CACHED = """
base_pipeline:
  cache: true
  stages:
    - {id: draft, model: a}
    - {id: panel, models: [a, {model: a, generation: {temperature: 1.0, seed: 5}}], aggregation: concat}
    - {id: final, models: [a, a], aggregation: {type: synthesis, synthesis_model: a, instructions: Merge.}}
"""


@pytest.fixture
def cached(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline(CACHED)
    project.link_model(smollm, "a.gguf")
    return project


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was really asked of a pool: to answer, or to load ahead."""
    asked: list[str] = []
    for name in ("generate", "prefetch"):
        real = getattr(ModelPool, name)

        def counted(self: ModelPool, *rest: Any, real: Any = real, name: str = name) -> Any:
            asked.append(name)
            return real(self, *rest)

        monkeypatch.setattr(ModelPool, name, counted)
    return asked


async def run(question: str = "What is ice?") -> PipelineResult:
    result: PipelineResult = await compile_flow(load_pipeline(Settings().pipeline_file))(question=question)
    return result


async def test_second_run_asks_no_model_and_loads_none(cached: Project, calls: list[str]) -> None:
    first = await run()
    assert calls.count("generate") == 6
    calls.clear()
    second = await run()
    assert calls == []
    assert second.answer == first.answer
    assert [step.text for step in second.steps] == [step.text for step in first.steps]


async def test_reused_answers_are_marked_in_session_and_artifact(cached: Project) -> None:
    await run()
    result = await run()
    record = load_session(cached.sessions, result.session_id)
    of_models = {step.id for step in result.steps if step.model}
    assert set(record.reused) == of_models
    assert record.tokens_per_s is None
    step = json.loads((result.session_path / "step1.json").read_text())
    assert (step["reused_from"], step["ttft_s"], step["started"]) == ("session_001", None, step["ended"])
    async with get_client() as client:
        by_key = ArtifactFilter(key=ArtifactFilterKey(any_=["base-draft-a"]))
        shown = await client.read_artifacts(artifact_filter=by_key)
    latest = max(shown, key=lambda artifact: artifact.created or 0)
    assert latest.description == "1 draft: a, reused from session_001"
    assert "*Reused from session_001: the call is identical.*" in str(latest.data)


async def test_another_question_is_asked_and_what_did_not_change_is_not(cached: Project, calls: list[str]) -> None:
    await run()
    calls.clear()
    await run("What is snow?")
    assert calls.count("generate") == 6
    calls.clear()
    cached.pipeline(CACHED.replace("Merge.", "Merge them well."))
    await run()
    assert calls.count("generate") == 1


async def test_answers_of_a_deleted_session_are_asked_for_again(cached: Project, calls: list[str]) -> None:
    first = await run()
    delete_session(cached.sessions, first.session_id)
    calls.clear()
    assert (await run()).answer == first.answer
    assert calls.count("generate") == 6


async def test_without_cache_every_call_is_made(cached: Project, calls: list[str]) -> None:
    cached.pipeline(CACHED.replace("cache: true", "cache: false"))
    await run()
    await run()
    assert calls.count("generate") == 12


async def test_dataset_run_takes_answers_over_and_gives_its_own(cached: Project, calls: list[str]) -> None:
    """Without seeds: with one, each item of a dataset has its own."""
    cached.pipeline(CACHED.replace("temperature: 1.0, seed: 5", "max_tokens: 4"))
    await run("What is ice?")
    calls.clear()
    path = cached.path / "questions.jsonl"
    path.write_text('{"question": "What is ice?"}\n{"question": "What is snow?"}\n')
    await batch(path)
    assert calls.count("generate") == 6, "those of the second question"
    calls.clear()
    await run("What is snow?")
    assert calls == []
