"""A stage goes on when enough of its members have answered, and says so. Real model, real Prefect server."""

import json
import re
import threading
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from pytest_httpserver import HTTPServer
from werkzeug import Response

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.rerun import rerun
from flows.result import PipelineFailed, PipelineResult
from llm_core.call_params import SamplingParams
from llm_core.errors import ConfigError, NotWaitedFor
from llm_core.pipeline import load_pipeline
from llm_core.plan import Call, StagePlan
from llm_core.session_files import load_session
from llm_core.settings import Settings
from tasks.quorum import Quorum
from tests.conftest import ENDLESS, Project

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0.5}}
  b: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0.9}}
  short: {file: a.gguf, overrides: {n_ctx: 32, max_tokens: 6}}
"""
# The question alone is longer than what `short` can read.
QUESTION = "What is ice, and where can it be found? " * 6
PIPELINE = """
base_pipeline:
  stages:
    - {id: panel, models: [a, b, short], quorum: 2, aggregation: concat}
    - {id: final, model: a}
"""
SAID = (
    "panel: 2 of 3 members answered, and its quorum is 2: "
    "short: model 'short': the prompt has 97 tokens and n_ctx is 32; raise n_ctx or shorten it"
)


@pytest.fixture
def panel(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "a.gguf")
    return project


async def run() -> PipelineResult:
    result: PipelineResult = await compile_flow(load_pipeline(Settings().pipeline_file))(question=QUESTION)
    return result


async def test_stage_goes_on_with_its_quorum_and_says_who_is_missing(panel: Project) -> None:
    result = await run()
    assert result.degraded == (SAID,)
    record = load_session(panel.sessions, result.session_id)
    assert (record.status, record.degraded) == ("completed", (SAID,))
    merged = json.loads((result.session_path / "step1_aggregation.json").read_text())
    assert list(merged["aggregation"]["candidates"]) == ["a", "b"]
    by_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[record.flow_run_id]))
    async with get_client() as client:
        shown = {found.key: str(found.data) for found in await client.read_artifacts(artifact_filter=by_run)}
    assert f"**Degraded:** {SAID}" in shown["base-panel-aggregation"]
    assert f"**Degraded:** {SAID}" in shown["base-final-answer"]


async def test_too_few_answers_fail_the_stage_and_those_that_came_are_kept(panel: Project) -> None:
    panel.pipeline(PIPELINE.replace("quorum: 2", "quorum: 3"))
    with pytest.raises(PipelineFailed, match="step 'panel: short' failed: model 'short': the prompt has 97 tokens"):
        await run()
    panel.pipeline(PIPELINE.replace("[a, b, short], quorum: 2", "[a, short, short], quorum: 2"))
    with pytest.raises(PipelineFailed, match=r"panel: 1 of 3 members answered, .* 2: short: .*; short_2: "):
        await run()
    assert (panel.sessions / "session_002" / "step1_a.json").exists()


async def test_member_that_takes_too_long_is_none_of_the_quorum(panel: Project) -> None:
    endless = f"{{model: b, generation: {{n_ctx: 4096, max_tokens: 4000, {ENDLESS}}}}}"
    limited = "quorum: 1, member_timeout_s: 4, retries: 0"
    panel.pipeline(PIPELINE.replace("b, short", endless).replace("quorum: 2", limited))
    (note,) = (await run()).degraded
    assert note.startswith("panel: 1 of 2 members answered, and its quorum is 1: b: ")
    assert "no end after timeout_s 4" in note


async def test_rerun_carries_over_what_there_was(panel: Project) -> None:
    await run()
    result = await rerun("session_001", "final")
    assert set(load_session(panel.sessions, result.session_id).reused) == {
        "1 panel: a",
        "1 panel: b",
        "1 panel: concat",
    }


async def test_item_of_a_dataset_goes_on_with_the_quorum(panel: Project) -> None:
    path = panel.path / "questions.jsonl"
    path.write_text(json.dumps({"question": QUESTION}) + "\n")
    result = await batch(path)
    assert result.n_failed == 0
    (row,) = (json.loads(line)["result"] for line in result.output.read_text().splitlines())
    assert (row["error"], row["degraded"]) == (None, [SAID])
    assert set(row["steps"]["panel"]["members"]) == {"a", "b"}


async def test_others_are_waited_for_no_longer_than_the_stage_says(panel: Project, httpserver: HTTPServer) -> None:
    """The server of `far` keeps silent for a minute, or until the test is over."""
    over = threading.Event()
    httpserver.expect_request("/v1/chat/completions").respond_with_handler(lambda asked: over.wait(60) and Response())
    provider = f"{{type: openai_compatible, base_url: '{httpserver.url_for('/v1')}'}}"
    panel.models(f"{MODELS}  far: {{provider: {provider}}}\n")
    panel.pipeline(PIPELINE.replace("short], quorum: 2", "far], quorum: 2, quorum_wait_s: 0.5"))
    result = await run()
    over.set()
    (note,) = result.degraded
    assert note == (
        "panel: 2 of 3 members answered, and its quorum is 2: "
        "far: not waited for: 2 answered, and quorum_wait_s (0.5) is over"
    )
    merged = json.loads((result.session_path / "step1_aggregation.json").read_text())
    assert set(merged["aggregation"]["candidates"]) == {"a", "b"}


async def test_answer_under_way_is_ended_when_nobody_waits_for_it(panel: Project) -> None:
    endless = f"{{model: b, generation: {{n_ctx: 4096, max_tokens: 4000, {ENDLESS}}}}}"
    panel.pipeline(PIPELINE.replace("b, short], quorum: 2", f"{endless}], quorum: 1, quorum_wait_s: 0"))
    (note,) = (await run()).degraded
    assert note.endswith("b: not waited for: 1 answered, and quorum_wait_s (0) is over")


def hurried(n_before: int = 0, wait_s: float = 0.0) -> Quorum:
    calls = tuple(Call(name, name, None, SamplingParams()) for name in "abc")
    return Quorum(StagePlan("s", 1, (), calls, "answer_only", None, 0, quorum=2, quorum_wait_s=wait_s), n_before)


def test_quorum_counts_what_an_earlier_try_has_left() -> None:
    quorum = hurried(n_before=1)
    quorum.check()
    quorum.answered()
    with pytest.raises(NotWaitedFor):
        quorum.check()


def test_others_have_the_time_that_is_left() -> None:
    quorum = hurried(n_before=2, wait_s=60)
    quorum.check()


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("models: [a, b], quorum_wait_s: 1", "'quorum_wait_s' needs 'quorum' beside it"),
        (
            "models: [a, b], quorum: 1, quorum_wait_s: 1, aggregation: cascade",
            "'quorum_wait_s' has no sense in a cascade, which asks one member after another",
        ),
    ],
)
def test_wait_without_a_quorum_is_refused(panel: Project, stage: str, said: str) -> None:
    path = panel.pipeline(f"base_pipeline: {{stages: [{{id: s, {stage}}}]}}")
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_pipeline(path)
