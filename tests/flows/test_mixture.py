"""A stage in layers: who answers when, and what each sees. Real models, real Prefect server."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.replay_command import replay_session
from flows.rerun import StageChange, rerun
from flows.result import PipelineFailed
from llm_core.mixture import LAYER_INSTRUCTIONS
from llm_core.pipeline import load_pipeline
from llm_core.session_files import load_session
from llm_core.settings import Settings
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 12, temperature: 0}}
  b: {file: b.gguf, overrides: {n_ctx: 512, max_tokens: 12, temperature: 0}}
  short: {file: a.gguf, overrides: {n_ctx: 64, max_tokens: 6, temperature: 0}}
"""
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: a}
    - {id: panel, models: [a, b], layers: 3, aggregation: concat}
    - {id: final, model: b}
"""
STEPS = [
    "1 draft: a",
    "2 panel (layer 1): a",
    "2 panel (layer 1): b",
    "2 panel (layer 1): all answers",
    "3 panel (layer 2): a",
    "3 panel (layer 2): b",
    "3 panel (layer 2): all answers",
    "4 panel: a",
    "4 panel: b",
    "4 panel: concat",
    "5 final: b",
]


def step(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"step{name}.json").read_text())
    return found


async def test_each_layer_sees_the_draft_and_all_answers_of_the_one_before(finished: Project) -> None:
    folder = finished.sessions / "session_001"
    for before, layer in ((2, 3), (3, 4)):
        answers = [step(folder, f"{before}_{name}")["text"] for name in ("a", "b")]
        for name in ("a", "b"):
            prompt = step(folder, f"{layer}_{name}")["prompt"]
            assert f"{LAYER_INSTRUCTIONS}\n\nQuestion:\nWhat is ice?\n\ndraft:\n{step(folder, '1')['text']}" in prompt
            assert f"Answer 1:\n{answers[0]}\n\nAnswer 2:\n{answers[1]}" in prompt
    assert "Answer 1" not in step(folder, "2_a")["prompt"]
    assert list(step(folder, "4_aggregation")["aggregation"]["candidates"].values()) == [
        step(folder, f"4_{name}")["text"] for name in ("a", "b")
    ]
    assert "Answer 1" not in step(folder, "5")["prompt"], "later stages read the stage's answer alone"


async def test_every_layer_is_in_the_session_and_in_the_graph(finished: Project) -> None:
    record = load_session(finished.sessions, "session_001")
    assert sorted(record.files) == sorted(STEPS)
    assert record.files["3 panel (layer 2): a"] == "step3_a.json"
    assert record.files["3 panel (layer 2): all answers"] == "step3_aggregation.json"
    by_run = FlowRunFilter(id=FlowRunFilterId(any_=[record.flow_run_id]))
    async with get_client() as client:
        runs = {run.name: run for run in await client.read_task_runs(flow_run_filter=by_run)}
    names = {run.id: name for name, run in runs.items()}

    def waits_for(name: str) -> set[str]:
        inputs = (each for given in runs[name].task_inputs.values() for each in given)
        return {names[each.id] for each in inputs if each.input_type == "task_run"}

    assert waits_for("panel (layer 2): a") == {
        "preflight: panel (layer 2)",
        "draft: a",
        "panel (layer 1): all answers",
    }
    assert {"panel: a", "panel: b"} < waits_for("panel: concat")


async def test_layers_are_replayed(finished: Project, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert replay_session("session_001", Settings(), verify=True, as_json=True) == 0
    steps = {step["step"]: step["outcome"] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps == dict.fromkeys(STEPS, "identical")


@pytest.mark.parametrize(("from_stage", "models"), [("panel", "aaabbbb"), ("panel (layer 2)", "aabbb"), ("final", "b")])
async def test_rerun_from_the_stage_is_from_its_first_layer(
    finished: Project, calls: list[str], from_stage: str, models: str
) -> None:
    result = await rerun("session_001", from_stage)
    assert "".join(sorted(calls)) == models
    assert {step.id for step in result.steps} == set(STEPS)


async def test_other_aggregation_keeps_the_answers_of_all_layers(finished: Project, calls: list[str]) -> None:
    vote = [StageChange(stage="panel", parameters=("aggregation=majority_vote",))]
    result = await rerun("session_001", "panel", changes=vote)
    assert calls == ["b"], "the final stage alone"
    assert step(result.session_path, "4_aggregation")["aggregation"]["kind"] == "majority_vote"


async def test_change_of_the_stage_reaches_all_its_layers(finished: Project, calls: list[str]) -> None:
    change = StageChange(stage="panel", instructions="Say it in verse.", parameters=("max_tokens=3",))
    result = await rerun("session_001", "panel", changes=[change])
    for layer in (2, 3, 4):
        assert step(result.session_path, f"{layer}_a")["completion_tokens"] == 3
        assert "Say it in verse." in step(result.session_path, f"{layer}_a")["prompt"]


async def test_items_of_a_dataset_go_through_layer_after_layer(finished: Project, calls: list[str]) -> None:
    path = finished.path / "questions.jsonl"
    path.write_text('{"question": "What is ice?"}\n{"question": "Who are you?"}\n')
    result = await batch(path)
    assert (result.n_failed, result.n_loads) == (0, 2)
    assert [summary.step for summary in result.steps] == [name.partition(" ")[2] for name in STEPS]
    rows = [json.loads(line)["result"] for line in result.output.read_text().splitlines()]
    folder = finished.sessions / "session_001"
    assert rows[0]["steps"]["panel (layer 2)"]["members"]["b"] == step(folder, "3_b")["text"]
    assert rows[0]["answer"] == step(folder, "5")["text"]


async def test_answers_that_do_not_fit_into_a_members_context_are_one_line(finished: Project) -> None:
    finished.models(MODELS)
    small = PIPELINE.replace("- {id: draft, model: a}", "").replace("[a, b], layers: 3", "[a, b, short], layers: 2")
    finished.pipeline(small)
    said = r"^step 'panel: short' failed: model 'short': the prompt has \d+ tokens and n_ctx is 64; raise n_ctx or .*$"
    with pytest.raises(PipelineFailed, match=said):
        await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")
    assert (finished.sessions / "session_002" / "step1_short.json").exists(), "its first answer is kept"


async def test_quorum_is_of_each_layer(finished: Project) -> None:
    small = PIPELINE.replace("- {id: draft, model: a}", "").replace("[a, b]", "[a, b, short], quorum: 2")
    finished.pipeline(small)
    result = await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")
    assert [note.partition(": short: ")[0] for note in result.degraded] == [
        "panel (layer 2): 2 of 3 members answered, and its quorum is 2",
        "panel: 2 of 3 members answered, and its quorum is 2",
    ]
    assert "Answer 3:" in step(result.session_path, "2_a")["prompt"]
    assert "Answer 3:" not in step(result.session_path, "3_a")["prompt"]


async def test_last_layer_may_be_a_cascade(finished: Project) -> None:
    cascade = "{type: cascade, at_least: 1, threshold: 1}"
    finished.pipeline(PIPELINE.replace("aggregation: concat", f"aggregation: {cascade}").replace("3,", "2,"))
    result = await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")
    assert [step.id for step in result.steps if step.stage == "panel"] == ["3 panel: a", "3 panel: cascade"]
    assert step(result.session_path, "3_aggregation")["aggregation"]["not_asked"] == ["b"]
