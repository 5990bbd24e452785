"""A run again from one of its stages: what is computed, what is carried over. Real model, real Prefect server."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from flows.rerun import StageChange, rerun
from flows.result import PipelineResult
from llm_core.errors import ConfigError, InputError, PlanError, SessionError
from llm_core.session_files import load_session
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0.5}}
  b: {file: b.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0.5}}
"""
# draft ─┬─ left ──┬─ merge
#        └─ right ─┤
#                  └─ note (reads right only)
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: a}
    - {id: left, model: a, input_from: draft}
    - {id: right, models: [a, b], input_from: draft, aggregation: concat}
    - {id: merge, model: b, input_from: [left, right]}
    - {id: note, model: a, input_from: right}
"""
FILES = {
    "draft": {"step1.json"},
    "left": {"step2.json"},
    "right": {"step3_a.json", "step3_b.json", "step3_aggregation.json"},
    "merge": {"step4.json"},
    "note": {"step5.json"},
}


@pytest.fixture
def parent(finished: Project, calls: list[str]) -> Project:
    """A project with one finished run, session_001; what is asked from here on is counted."""
    return finished


def step_files(session: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in session.glob("step*.json")}


@pytest.mark.parametrize(
    ("from_stage", "again", "models"),
    [
        ("draft", {"draft", "left", "right", "merge", "note"}, "aaaabb"),
        ("left", {"left", "merge"}, "ab"),
        ("right", {"right", "merge", "note"}, "aabb"),
        ("merge", {"merge"}, "b"),
        ("note", {"note"}, "a"),
    ],
)
async def test_stage_and_what_depends_on_it_run_again_and_nothing_else(
    parent: Project, calls: list[str], from_stage: str, again: set[str], models: str
) -> None:
    result = await rerun("session_001", from_stage)
    assert "".join(sorted(calls)) == models
    before, after = step_files(parent.sessions / "session_001"), step_files(result.session_path)
    kept = {name for stage, names in FILES.items() if stage not in again for name in names}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert all(after[name] != before[name] for name in set(before) - kept)
    record = load_session(parent.sessions, result.session_id)
    assert (record.parent, record.from_stage, record.status) == ("session_001", from_stage, "completed")
    assert {record.files[step] for step in record.reused} == kept


async def artifact_of(project: Project, session_id: str, key: str) -> str:
    """The one artifact with this key that the session's flow run has made."""
    flow_run_id = load_session(project.sessions, session_id).flow_run_id
    by_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=by_run)
    (artifact,) = [artifact for artifact in found if artifact.key == key]
    return str(artifact.data)


async def test_run_links_to_its_parents(parent: Project) -> None:
    result = await rerun("session_001", "note")
    parents_run = load_session(parent.sessions, "session_001").flow_run_id
    assert f"/runs/flow-run/{parents_run}" in await artifact_of(parent, result.session_id, "session-001-parent")


async def test_run_shows_what_differs_from_its_parent(parent: Project) -> None:
    """The parent's note is one that no model would write, so that it surely differs."""
    path = parent.sessions / "session_001" / "step5.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text": "Zebra zebra zebra."}))
    result = await rerun("session_001", "note", changes=[StageChange(stage="note", parameters=("max_tokens=3",))])
    shown = await artifact_of(parent, result.session_id, "base-diff")
    assert "- `stages.note.generation.max_tokens`: ~~(not set)~~ **3**" in shown
    assert "## 5 note: a\n" in shown
    assert shown.endswith("3 right: concat, 4 merge: b")


async def test_parent_stays_as_it_was(parent: Project) -> None:
    before = {path: path.read_bytes() for path in (parent.sessions / "session_001").iterdir()}
    await rerun("session_001", "merge")
    assert {path: path.read_bytes() for path in (parent.sessions / "session_001").iterdir()} == before


async def test_changed_aggregation_reuses_the_answers_of_the_members(parent: Project, calls: list[str]) -> None:
    vote = [StageChange(stage="right", parameters=("aggregation=majority_vote",))]
    result = await rerun("session_001", "right", changes=vote)
    assert sorted(calls) == ["a", "b"], "note and merge, but neither member of right"
    aggregation = json.loads((result.session_path / "step3_aggregation.json").read_text())
    assert aggregation["aggregation"]["kind"] == "majority_vote"


async def test_changes_reach_the_stage_and_are_written_down(parent: Project) -> None:
    change = StageChange(stage="merge", model="a", instructions="Say it in verse.", parameters=("max_tokens=3",))
    result = await rerun("session_001", "merge", changes=[change])
    step = json.loads((result.session_path / "step4.json").read_text())
    assert step["model"] == "a"
    assert step["completion_tokens"] == 3
    assert "Say it in verse." in step["prompt"]
    record = load_session(parent.sessions, result.session_id)
    assert record.changed == ("merge.max_tokens=3", "merge: model a", "merge: instructions")


async def test_snapshot_counts_and_not_the_file_of_today(parent: Project) -> None:
    parent.pipeline("base_pipeline: {stages: [{id: other, model: a}]}")
    result = await rerun("session_001", "merge")
    assert [step.stage for step in result.steps][-1] == "note"
    assert (result.session_path / "step4.json").exists()


async def test_model_that_is_gone_stops_nothing_that_does_not_run_again(parent: Project, calls: list[str]) -> None:
    (parent.path / "models" / "b.gguf").unlink()
    await rerun("session_001", "note")
    assert calls == ["a"]
    with pytest.raises(SessionError, match=r"since session_001: model 'b' is gone .*; choose another with --model"):
        await rerun("session_001", "merge")


async def test_model_that_has_changed_is_named_before_anything_runs(
    parent: Project, variants: dict[str, Path], calls: list[str]
) -> None:
    (parent.path / "models" / "b.gguf").unlink()
    parent.link_model(variants["Q4_0"], "b.gguf")
    with pytest.raises(SessionError, match="model 'b' has changed"):
        await rerun("session_001", "merge")
    assert calls == []
    assert len(list(parent.sessions.glob("session_*"))) == 1


async def test_number_of_times_that_makes_no_sense_is_one_line(parent: Project) -> None:
    with pytest.raises(ConfigError, match=r"^rerun: times: input should be greater than or equal to 1, not 0$"):
        await rerun("session_001", "note", times=0)


async def test_several_times_are_several_sessions(parent: Project) -> None:
    results: list[PipelineResult] = await rerun("session_001", "note", times=2)
    assert [result.session_id for result in results] == ["session_002", "session_003"]
    texts = {(result.session_path / "step5.json").read_bytes() for result in results}
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("from_stage", "changes", "error", "message"),
    [
        ("mrege", [], InputError, "session_001 has no stage 'mrege'; did you mean 'merge'?"),
        (
            "note",
            [{"stage": "draft", "parameters": ["max_tokens=3"]}],
            InputError,
            "stage 'draft' does not depend on 'note'; a change of it would do nothing",
        ),
        ("note", [{"stage": "note", "parameters": ["max_tokens=0"]}], ConfigError, "--set note.max_tokens=0"),
        ("note", [{"stge": "note"}], ConfigError, "rerun: changes[0]: unknown key 'stge'; did you mean 'stage'?"),
        ("note", [{"stage": "note", "model": "c"}], PlanError, "unknown model 'c' in stage 'note'"),
    ],
)
async def test_what_cannot_be_done_is_said_before_a_session_is_made(
    parent: Project, from_stage: str, changes: list[Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as refused:
        await rerun("session_001", from_stage, changes=changes)
    assert message in str(refused.value)
    assert len(list(parent.sessions.glob("session_*"))) == 1
