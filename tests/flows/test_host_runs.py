"""Runs that use the model host of this machine."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.result import PipelineResult
from llm_core.host_address import read_address
from llm_core.host_pool import HostPool
from llm_core.pipeline import load_pipeline
from llm_core.settings import Settings
from tasks.run import Silent, progress
from tests.conftest import Project
from tests.flows.test_pipeline import OnFirstToken
from tests.llm_core.test_host import running_host

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = "models: {small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 40, temperature: 0.5}}}"
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: small}
    - {id: final, model: small}
"""


@pytest.fixture
def hosted(project: Project, smollm: Path) -> Iterator[Project]:
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "small.gguf")
    with running_host(Settings().cache_folder):
        yield project


async def run() -> PipelineResult:
    return await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")


async def test_second_run_loads_nothing(hosted: Project) -> None:
    pool = HostPool(Settings().cache_folder)
    await run()
    assert pool.load_count == 1
    result = await run()
    assert pool.load_count == 1
    assert [step.load_s for step in result.steps] == [0.0, 0.0]
    assert [resident.model for resident in pool.status()] == ["small"]


async def test_dataset_goes_through_the_host(hosted: Project) -> None:
    (hosted.path / "q.jsonl").write_text("".join(f'{{"question": "Name {n} things."}}\n' for n in range(6)))
    result = await batch(hosted.path / "q.jsonl", overrides=["draft.max_tokens=4", "final.max_tokens=4"])
    assert (result.n_items, result.n_failed) == (6, 0)


async def test_step_whose_host_dies_is_retried_when_the_host_is_back(hosted: Project) -> None:
    cache = Settings().cache_folder
    back: list[object] = []

    def kill_and_start_again() -> None:
        address = read_address(cache)
        assert address
        os.kill(address.pid, signal.SIGKILL)
        threading.Thread(target=restart).start()

    def restart() -> None:
        while read_address(cache):
            time.sleep(0.05)
        manager = running_host(cache)
        manager.__enter__()
        back.append(manager)

    progress.set(OnFirstToken("final: small", kill_and_start_again))
    result = await run()
    progress.set(Silent())
    assert result.status == "completed"
    assert [step.stage for step in result.steps] == ["draft", "final"]
    back[0].__exit__(None, None, None)  # type: ignore[attr-defined]
