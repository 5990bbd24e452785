"""A pipeline made for one run, on the real small model, and kept in pipeline.yaml afterwards."""

import json
from pathlib import Path

import pytest

from flows.manual import manual
from flows.pipeline import compile_flow
from llm_core.errors import ConfigError, PlanError
from llm_core.pipeline import load_pipeline
from llm_core.settings import Settings
from tests.conftest import Project
from tests.flows.test_cli import assert_refused, gguf_flow

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0.5}}
  gone: {file: gone.gguf, required_for_base: true}
"""
FORM = {
    "stages": [
        {"id": "idea", "models": ["a"], "max_tokens": 4},
        {"models": ["a", "a"], "aggregation": "majority_vote", "system_prompt": "Be brief."},
    ]
}


@pytest.fixture
def without_base_model(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline("# Ours.\nbase_pipeline: {stages: [{id: only, model: gone}]}\n")
    project.link_model(smollm, "a.gguf")
    return project


async def test_manual_pipeline_runs_where_models_of_the_base_pipeline_are_missing(without_base_model: Project) -> None:
    result = await manual("Name a colour.", FORM)
    assert [step.id for step in result.steps] == [
        "1 idea: a",
        "2 stage2: a",
        "2 stage2: a_2",
        "2 stage2: majority_vote",
    ]
    assert result.steps[0].completion_tokens <= 4
    with pytest.raises(PlanError, match="'gone'"):
        await compile_flow(load_pipeline(Settings().pipeline_file))(question="Name a colour.")


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        ({"stages": [{"models": ["b"]}]}, PlanError, "manual.stages[0].model: unknown model 'b' in stage 'stage1'"),
        ({"stages": [{"models": ["a"], "topp": 1}]}, ConfigError, "unknown key 'topp'; did you mean 'top_p'?"),
        ({"stages": [{"models": ["gone"]}]}, PlanError, "model 'gone' of stage 'stage1' is not usable"),
    ],
)
async def test_wrong_manual_pipeline_is_one_line_and_leaves_no_session(
    without_base_model: Project, form: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        await manual("Name a colour.", form)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(without_base_model.sessions.glob("session_*")) == []


async def test_saved_pipeline_runs_by_its_name(without_base_model: Project) -> None:
    result = await manual("Name a colour.", FORM)
    saved = gguf_flow("save", result.session_id, "colours")
    assert saved.returncode == 0, saved.stderr
    text = Settings().pipeline_file.read_text()
    assert text.startswith("# Ours.\nbase_pipeline: {stages: [{id: only, model: gone}]}\n")
    again = await compile_flow(load_pipeline(Settings().pipeline_file, "colours"))(question="Name a colour.")
    before, after = (
        json.loads((one.session_path / "config_snapshot.json").read_text())["pipeline"]["stages"]
        for one in (result, again)
    )
    assert before == after
    assert_refused(gguf_flow("save", result.session_id, "colours"), "there is a pipeline 'colours' already")
    assert_refused(gguf_flow("save", "session_999", "other"), "no session 'session_999'")
