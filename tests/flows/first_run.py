"""A run that many tests begin with: made once, and copied for each, because a run takes seconds."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from flows.pipeline import compile_flow
from llm_core.pipeline import load_pipeline
from llm_core.settings import Settings
from tests.conftest import Project


async def make_first_run(folder: Path, models: str, pipeline: str, files: Mapping[str, Path]) -> Project:
    """A project in `folder` with one finished run, session_001; `files`: the models folder's, by name."""
    project = Project.make(folder)
    project.models(models)
    project.pipeline(pipeline)
    for name, file in files.items():
        project.link_model(file, name)
    with pytest.MonkeyPatch.context() as patched:
        _enter(project, patched)
        await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")
    return project


def copy_for_one_test(first_run: Project, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The same project in `folder`, which is the current one until the test ends."""
    project = first_run.copied_to(folder)
    _enter(project, monkeypatch)
    return project


def _enter(project: Project, patched: pytest.MonkeyPatch) -> None:
    patched.chdir(project.path)
    patched.setenv("GGUF_FLOW_CACHE_DIR", str(project.path / "cache"))
