"""Flows that are given retries of Prefect's own, as `flow.with_options(retries=1)`: real model, real Prefect server."""

from pathlib import Path
from typing import Any

import pytest

import flows.batch
from flows.batch import batch
from flows.pipeline import compile_flow
from flows.result import PipelineFailed
from llm_core.overrides import override
from llm_core.pipeline import load_pipeline
from llm_core.session_files import load_session
from llm_core.settings import Settings
from llm_core.worker import ModelWorker
from tasks.run import progress
from tests.conftest import Project
from tests.flows.test_pipeline import OnFirstToken, kill_worker

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
defaults: {n_ctx: 512, max_tokens: 6, temperature: 0.5}
models: {a: {file: a.gguf}, b: {file: b.gguf}}
"""
PIPELINE = """
base_pipeline:
  retries: 0
  stages:
    - {id: draft, model: a}
    - {id: final, model: b}
"""


@pytest.fixture
def two_models(project: Project, variants: dict[str, Path]) -> Project:
    project.link_model(variants["Q4_1"], "a.gguf")
    project.link_model(variants["Q8_0"], "b.gguf")
    project.models(MODELS)
    project.pipeline(PIPELINE)
    return project


async def test_flow_goes_on_in_its_session_with_what_has_finished(two_models: Project) -> None:
    progress.set(OnFirstToken("final: b", kill_worker))
    flow = compile_flow(load_pipeline(Settings().pipeline_file)).with_options(retries=1)
    result = await flow(question="What is ice?")
    assert [step.id for step in result.steps] == ["1 draft: a", "2 final: b"]
    assert [path.name for path in two_models.sessions.glob("session_*")] == [result.session_id]
    assert load_session(two_models.sessions, result.session_id).status == "completed"
    assert result.steps[0].ended < result.steps[1].started


async def test_flow_without_retries_left_raises_what_failed(two_models: Project) -> None:
    spec = override(load_pipeline(Settings().pipeline_file), ["final.timeout_s=0.001"])
    with pytest.raises(PipelineFailed, match=r"step 'final: b' failed: .*timeout_s"):
        await compile_flow(spec).with_options(retries=1)(question="What is ice?")
    record = load_session(two_models.sessions, "session_001")
    assert (record.status, list(record.files)) == ("failed", ["1 draft: a"])
    assert record.error
    assert record.error.startswith("step 'final: b' failed: ")


async def test_dataset_goes_on_with_the_items_that_are_left(
    two_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two_models.path / "q.jsonl").write_text('{"question": "What is ice?"}\n{"question": "What is snow?"}\n' * 2)
    generate, end_failed = ModelWorker.generate, flows.batch._failed
    asked: list[str] = []
    has_failed = False

    def dying(self: ModelWorker, *rest: Any) -> Any:
        asked.append(Path(self.load.path).stem)
        if not has_failed and asked[-1] == "b":
            self.kill()
        return generate(self, *rest)

    def noted(*rest: Any) -> Any:
        nonlocal has_failed
        has_failed = True
        return end_failed(*rest)

    monkeypatch.setattr(ModelWorker, "generate", dying)
    monkeypatch.setattr(flows.batch, "_failed", noted)
    result = await batch.with_options(retries=1)(two_models.path / "q.jsonl")
    assert has_failed
    assert (result.n_items, result.n_failed) == (4, 2), "on two the first try had given up"
    assert asked.count("a") == 4
    assert [path.name for path in two_models.sessions.glob("session_*")] == ["session_001"]
