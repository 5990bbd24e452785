"""One `gguf-flow serve` for all tests of this folder."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_core.host_address import read_address
from tests.conftest import ENDLESS, Project
from tests.deployments.served import Served, free_port

MODELS = """
models:
  small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0.5}}
  other: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0.9}}
  gone: {file: gone.gguf}
"""
PIPELINES = """
base_pipeline:
  stages:
    - {id: draft, model: small}
    - {id: panel, models: [small, other], aggregation: concat}
    - {id: final, model: small}
pipelines:
  absent: {stages: [{id: a, model: gone}]}
  every-second:
    schedule: {interval_s: 2, parameters: {question: 'What is ice?'}, active: false}
    stages: [{id: a, model: small}]
  fragile:
    retries: 0
    stages:
      - {id: draft, model: small}
      - {id: final, model: small, generation: {max_tokens: 440, ENDLESS}}
  reviewed:
    retries: 0
    stages:
      - {id: draft, model: small, approve: true}
      - {id: final, model: small, generation: {max_tokens: 440, ENDLESS}}
  approved: {stages: [{id: draft, model: small, approve: true}, {id: final, model: small}]}
  wrong: {stages: [{id: a, model: small, aggregatoin: concat}]}
""".replace("ENDLESS", ENDLESS)


def serve_pipelines(folder: Path, smollm: Path) -> Served:
    """A `serve` of `PIPELINES` in an empty folder, just started."""
    project = Project.make(folder)
    project.models(MODELS)
    project.pipeline(PIPELINES)
    project.link_model(smollm, "small.gguf")
    return Served(project, free_port())


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Iterator[Served]:
    served = serve_pipelines(tmp_path_factory.mktemp("serve"), smollm)
    served.wait_for(lambda: "serving batch/batch" in served.said)
    yield served
    assert served.stop(signal.SIGINT) == []
    assert served.process.returncode == 0
    assert read_address(served.project.path / "cache") is None
