"""Datasets through pipelines, on real models and a real Prefect server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId

from flows.batch import BatchResult, batch
from flows.result import PipelineFailed
from llm_core import local_pool
from llm_core.errors import GgufFlowError, SessionError
from llm_core.memory import MemoryEstimates
from llm_core.session_files import list_sessions, load_session
from llm_core.settings import Settings
from tasks.run import Silent, progress
from tests.conftest import Project
from tests.flows.test_pipeline import kill_worker

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = "models: {a: {file: a.gguf}, b: {file: b.gguf}, c: {file: c.gguf}}"
WARM = "temperature: 0.5, seed: 1, max_tokens: 6, n_ctx: 256"
"""Not decoded alone."""
THREE_STAGES = f"""
base_pipeline:
  stages:
    - {{id: draft, model: a, generation: {{{WARM}}}}}
    - {{id: critique, model: b, generation: {{{WARM}}}}}
    - {{id: final, model: c, generation: {{{WARM}}}}}
pipelines:
  panel:
    stages:
      - {{id: draft, model: a, generation: {{{WARM}}}}}
      - {{id: panel, model: a, samples: 3, generation: {{{WARM}}}, aggregation: majority_vote}}
  greedy:
    stages:
      - {{id: draft, model: a, generation: {{temperature: 0, max_tokens: 3, n_ctx: 256}}}}
"""


@pytest.fixture
def three_models(project: Project, variants: dict[str, Path]) -> Project:
    for name, file in (("a", "Q4_1"), ("b", "Q8_0"), ("c", "Q4_0")):
        project.link_model(variants[file], f"{name}.gguf")
    project.models(MODELS)
    project.pipeline(THREE_STAGES)
    return project


def dataset(project: Project, *questions: str) -> Path:
    path = project.path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": q, "gold": n}) + "\n" for n, q in enumerate(questions)))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class AfterItems(Silent):
    """Does something once a step has so many items."""

    def __init__(self, step: str, n_items: int, action: Any) -> None:
        self.step, self.left, self.action = step, n_items, action

    def item(self, step: str, n_tokens: int, failed: bool) -> None:
        self.left -= step == self.step
        if step == self.step and self.left == 0:
            self.action()


async def run(path: Path, pipeline: str = "base", **options: Any) -> BatchResult:
    return await batch(path, pipeline, **options)


async def task_runs(session_id: str) -> list[Any]:
    flow_run_id = load_session(Settings().sessions_folder, session_id).flow_run_id
    async with get_client() as client:
        return await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))


async def test_every_row_is_answered_in_order_with_its_columns_and_all_steps(three_models: Project) -> None:
    questions = [f"Name {n} things." for n in range(20)]
    result = await run(dataset(three_models, *questions), output=three_models.path / "out.jsonl")
    found = rows(three_models.path / "out.jsonl")
    assert [row["question"] for row in found] == questions
    assert [row["gold"] for row in found] == list(range(20))
    assert [row["result"]["item"] for row in found] == list(range(1, 21))
    assert all(set(row["result"]["steps"]) == {"draft", "critique", "final"} for row in found)
    assert all(row["result"]["answer"] == row["result"]["steps"]["final"] for row in found)
    assert len({row["result"]["steps"]["draft"] for row in found}) > 10, "to each its own"
    assert (result.n_items, result.n_failed) == (20, 0)
    session = load_session(Settings().sessions_folder, result.session_id)
    assert session.status == "completed"
    assert list(session.files) == ["1 draft: a", "2 critique: b", "3 final: c"]


async def test_task_runs_are_one_per_stage_and_model_whatever_the_number_of_items(three_models: Project) -> None:
    few = await run(dataset(three_models, "Hi", "Ho"), "panel")
    many = await run(dataset(three_models, *"abcdefghijkl"), "panel", output=three_models.path / "many.jsonl")
    for result in (few, many):
        names = sorted(task.name for task in await task_runs(result.session_id))
        assert names == [
            "draft: a",
            "panel: a",
            "panel: a_2",
            "panel: a_3",
            "panel: majority_vote",
            "preflight: draft",
            "preflight: panel",
        ]


async def test_samples_of_one_file_are_votes_of_one_row(three_models: Project) -> None:
    result = await run(dataset(three_models, "Yes or no?", "Cat or dog?"), "panel")
    for row in rows(result.output):
        panel = row["result"]["steps"]["panel"]
        assert list(panel["members"]) == ["a", "a_2", "a_3"]
        assert sum(panel["evidence"]["counts"].values()) == 3
        assert panel["answer"] == row["result"]["answer"]
    assert result.output == three_models.sessions / result.session_id / "results.jsonl"


async def test_three_files_under_a_budget_for_one_are_loaded_three_times_in_all(
    three_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_core.call_params import LoadParams

    estimates = MemoryEstimates(Settings().cache_folder)
    largest = max(
        estimates.need(LoadParams(str(three_models.path / "models" / f"{name}.gguf"), 256, sequences=4)).ram_bytes
        for name in "abc"
    )
    # Two would need 1.9 times as much. Not measured: what else runs here takes and frees memory as it likes.
    monkeypatch.setattr(local_pool, "budget", lambda machine, limits: {"RAM": int(largest * 1.5)})
    result = await run(dataset(three_models, *(f"Name {n} things." for n in range(16))))
    assert result.n_loads == 3


async def test_progress_steps_and_results_are_artifacts(three_models: Project) -> None:
    result = await run(dataset(three_models, "Hi", "Ho"))
    flow_run_id = load_session(Settings().sessions_folder, result.session_id).flow_run_id
    async with get_client() as client:
        artifacts = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    by_key = {artifact.key: artifact for artifact in artifacts}
    assert float(by_key["base-critique-b-progress"].data) == 100
    steps = [row["step"] for row in json.loads(by_key["base-batch-steps"].data)]
    assert steps == [
        "draft: a",
        "critique: b",
        "final: c",
    ]
    assert by_key["base-batch-steps"].description == "All items, step by step; 3 model loads"
    assert [row["question"] for row in json.loads(by_key["base-batch-results"].data)] == ["Hi", "Ho"]


async def test_bad_items_are_error_rows_and_not_the_end(three_models: Project) -> None:
    result = await run(dataset(three_models, "Hi", "word " * 400, "", "Ho"))
    found = [row["result"] for row in rows(result.output)]
    assert [bool(row["answer"]) for row in found] == [True, False, False, True]
    assert found[1]["error"].startswith("1 draft: a: model 'a': the prompt has")
    assert found[2]["error"] == "1 draft: a: the question is empty; give some text to answer"
    assert result.n_failed == 2


async def test_items_on_their_way_when_their_model_dies_are_asked_again(three_models: Project) -> None:
    progress.set(AfterItems("critique: b", 3, kill_worker))
    result = await run(dataset(three_models, *(f"Name {n} things." for n in range(20))))
    progress.set(Silent())
    assert result.n_failed == 0
    assert all(row["result"]["answer"] for row in rows(result.output))


async def test_model_that_dies_every_time_ends_the_run_and_keeps_what_there_is(
    three_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_core.worker import ModelWorker

    generate = ModelWorker.generate

    def dying(self: ModelWorker, *arguments: Any) -> Any:
        if self.load.path.endswith("b.gguf"):
            self.kill()
        return generate(self, *arguments)

    monkeypatch.setattr(ModelWorker, "generate", dying)
    with pytest.raises(
        PipelineFailed, match=r"step 'critique: b' failed: 3 items in a row, each asked alone: model 'b'"
    ):
        await run(dataset(three_models, *(f"Name {n} things." for n in range(12))))
    (session,) = list_sessions(three_models.sessions)
    assert not isinstance(session, SessionError)
    assert session.status == "failed"
    assert len(rows(three_models.sessions / session.id / "step1.jsonl")) == 12


def start_batch(project: Project, *options: str) -> "subprocess.Popen[str]":
    from prefect.settings import get_current_settings

    environment = {**os.environ, "PREFECT_API_URL": str(get_current_settings().api.url)}
    command = [sys.executable, "-m", "flows", "batch", "q.jsonl", "-o", "out.jsonl", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=project.path, env=environment)


def saved(project: Project) -> dict[str, str]:
    return {path.name: path.read_text() for path in project.sessions.glob("session_*/step*.jsonl")}


async def test_resume_after_kill_minus_nine_redoes_nothing_that_was_saved(three_models: Project) -> None:
    dataset(three_models, *(f"Name {n} things." for n in range(40)))
    killed = start_batch(three_models)
    deadline = time.monotonic() + 120
    while len(saved(three_models).get("step2.jsonl", "").splitlines()) < 5:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = saved(three_models)
    assert len(before["step1.jsonl"].splitlines()) == 40
    resumed = start_batch(three_models, "--resume")
    out, err = resumed.communicate(timeout=180)
    assert resumed.returncode == 0, err
    assert "draft: a: done, 40 items" in err
    after = saved(three_models)
    for name, text in before.items():
        whole = text[: text.rfind("\n") + 1]
        assert after[name].startswith(whole), f"{name} goes on where it was"
    for text in after.values():
        assert sorted(json.loads(line)["item"] for line in text.splitlines()) == list(range(1, 41)), "each item once"
    assert [row["result"]["item"] for row in rows(Path(out.strip()))] == list(range(1, 41))
    assert len(list(three_models.sessions.glob("session_*"))) == 1
    again = start_batch(three_models, "--resume")
    assert again.communicate(timeout=60)[1].strip().startswith("gguf-flow: no unfinished run of 'base' over")
    assert again.returncode == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda project: dataset(project, "Other"), "has changed since session_001 began; start anew"),
        (
            lambda project: project.pipeline(THREE_STAGES.replace("id: final, model: c", "id: final, model: a")),
            "pipeline 'base' was edited since session_001 began",
        ),
        (
            lambda project: project.models(MODELS.replace("file: c.gguf", "file: a.gguf")),
            "model 'c' has changed since session_001 began",
        ),
    ],
)
async def test_resume_is_refused_where_something_has_changed(
    three_models: Project, change: Any, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import batch as batch_module

    def stop(*_: Any) -> None:
        raise GgufFlowError("stopped before its end")

    path = dataset(three_models, "Hi")
    with monkeypatch.context() as patched:
        patched.setattr(batch_module, "_submit", stop)
        with pytest.raises(GgufFlowError, match="stopped"):
            await run(path)
    change(three_models)
    with pytest.raises(SessionError) as refusal:
        await run(path, resume=True)
    assert problem in str(refusal.value)


async def test_greedy_items_of_a_dataset_are_those_of_single_runs(three_models: Project) -> None:
    from flows.pipeline import compile_flow
    from llm_core.pipeline import load_pipeline

    questions = ["What is ice?", "Name a colour.", "Count to three."]
    result = await run(dataset(three_models, *questions), "greedy")
    greedy = compile_flow(load_pipeline(Settings().pipeline_file, "greedy"))
    alone = [(await greedy(question=question)).answer for question in questions]
    assert [row["result"]["answer"] for row in rows(result.output)] == alone
