"""A run that many tests begin with, made once a module because a run takes seconds; and pools that go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import pools
from flows.pipeline import compile_flow
from llm_core.pipeline import load_pipeline
from llm_core.pool import ModelPool
from llm_core.settings import Settings
from tests.conftest import Project


@pytest.fixture
def clean_pools() -> Iterator[None]:
    """Models that persistent pipelines of this process keep loaded go when the test ends."""
    yield
    pools.close_shared_pools()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were really asked, in order."""
    asked: list[str] = []
    generate = ModelPool.generate

    def counted(self: ModelPool, load: Any, model: str, *rest: Any) -> Any:
        asked.append(model)
        return generate(self, load, model, *rest)

    monkeypatch.setattr(ModelPool, "generate", counted)
    return asked


@pytest.fixture(scope="module")
async def first_run(
    request: pytest.FixtureRequest,
    prefect_server: None,
    tmp_path_factory: pytest.TempPathFactory,
    smollm: Path,
    variants: dict[str, Path],
) -> Project:
    """A project with the module's MODELS and PIPELINE, models a.gguf and b.gguf, and one finished run, session_001."""
    project = Project.make(tmp_path_factory.mktemp("first-run"))
    project.models(request.module.MODELS)
    project.pipeline(request.module.PIPELINE)
    project.link_model(smollm, "a.gguf")
    project.link_model(variants["Q8_0"], "b.gguf")
    with pytest.MonkeyPatch.context() as patched:
        _enter(project, patched)
        await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")
    return project


@pytest.fixture
def finished(first_run: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """That project for one test alone, and the current folder."""
    project = first_run.copied_to(tmp_path)
    _enter(project, monkeypatch)
    return project


def _enter(project: Project, patched: pytest.MonkeyPatch) -> None:
    patched.chdir(project.path)
    patched.setenv("GGUF_FLOW_CACHE_DIR", str(project.path / "cache"))
