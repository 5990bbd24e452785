"""The example pipelines on the real small model, through a real Prefect server."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.flows import load_flow_from_entrypoint

from flows import pipelines
from flows.pipeline import compile_flow
from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import ContextOverflow, GenerationTimeout, InputError, ModelCrashed, PlanError
from llm_core.overrides import override
from llm_core.pipeline import PipelineSpec, load_pipeline
from llm_core.session_files import load_session, load_steps
from llm_core.settings import Settings
from tasks import watched
from tasks.run import Silent, progress
from tests.conftest import REPOSITORY, Project

pytestmark = pytest.mark.usefixtures("prefect_server")
SHORT = ["draft.max_tokens=12", "critique.max_tokens=12", "panel.max_tokens=12"]


class OnFirstToken(Silent):
    """Does something once, when a given step has its first token."""

    def __init__(self, step: str, action: Callable[[], None]) -> None:
        self.step, self.action, self.done = step, action, False

    def token(self, step: str, n_tokens: int) -> None:
        if step == self.step and not self.done:
            self.done = True
            self.action()


def worker_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "llm_core.worker_child" in p.cmdline()]


def kill_worker() -> None:
    for process in worker_processes():
        os.kill(process.pid, signal.SIGKILL)


def base(*assignments: str, **changes: Any) -> PipelineSpec:
    spec = override(load_pipeline(Settings().pipeline_file), [*SHORT, *assignments])
    return spec.model_copy(update=changes)


async def run(spec: PipelineSpec, question: str = "What is the capital of France?") -> PipelineResult:
    return await compile_flow(spec)(question=question)


async def flow_run_of(session_id: str) -> Any:
    record = load_session(Settings().sessions_folder, session_id)
    async with get_client() as client:
        return await client.read_flow_run(record.flow_run_id)


async def test_base_pipeline_answers_and_leaves_every_step_in_its_session(example_project: Project) -> None:
    result = await run(base())

    folder = example_project.sessions / "session_001"
    assert result.session_path == folder
    assert {path.name for path in folder.iterdir()} == {
        "session.json",
        "config_snapshot.json",
        "step1.json",
        "step2.json",
        "step3_smollm2.json",
        "step3_smollm2-bold.json",
        "step3_smollm2-plain.json",
        "step3_aggregation.json",
        "final.txt",
    }
    assert (folder / "final.txt").read_text() == result.answer + "\n"
    session = load_session(example_project.sessions, "session_001")
    assert (session.status, session.pipeline, session.question) == (
        "completed",
        "base",
        "What is the capital of France?",
    )
    steps = load_steps(example_project.sessions, session)
    assert [step.id for step in steps] == [
        "1 draft: smollm2",
        "2 critique: smollm2-plain",
        "3 panel: smollm2",
        "3 panel: smollm2-bold",
        "3 panel: smollm2-plain",
        "3 panel: synthesis",
    ]
    for step in steps:
        assert step.text
        assert step.prompt
        assert step.prompt_tokens
        assert 1 <= (step.completion_tokens or 0) <= 12
        assert step.finish_reason in ("stop", "length")
        assert step.seed is not None
    assert "<|im_start|>system\nYou answer briefly and correctly." in (steps[0].prompt or "")
    assert steps[0].text in (steps[1].prompt or ""), "the critique reads the draft"


async def test_one_file_under_three_names_is_loaded_once(example_project: Project) -> None:
    result = await run(base())
    assert sum(1 for step in result.steps if step.load_s) == 1


async def test_snapshot_names_each_file_with_its_size_and_hash(example_project: Project) -> None:
    import json

    result = await run(base())
    snapshot = json.loads((result.session_path / "config_snapshot.json").read_text())
    model = snapshot["models"]["smollm2"]
    assert model["size_bytes"] == 98362432
    assert model["sha256"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert "llama-cpp-python" in snapshot["versions"]


async def test_prefect_graph_shows_the_fan_out_of_three_and_the_merge_of_one(example_project: Project) -> None:
    result = await run(base())
    flow_run = await flow_run_of(result.session_id)
    async with get_client() as client:
        tasks = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])))
    names = {task.id: task.name for task in tasks}
    upstream = {
        task.name: {
            names[source.id]
            for inputs in task.task_inputs.values()
            for source in inputs
            if source.input_type == "task_run"
        }
        for task in tasks
    }
    panel = {"panel: smollm2", "panel: smollm2-bold", "panel: smollm2-plain"}
    assert upstream == {
        "preflight: draft": set(),
        "draft: smollm2": {"preflight: draft"},
        "preflight: critique": {"draft: smollm2"},
        "critique: smollm2-plain": {"preflight: critique", "draft: smollm2"},
        "preflight: panel": {"draft: smollm2", "critique: smollm2-plain"},
        **{member: {"preflight: panel", "draft: smollm2", "critique: smollm2-plain"} for member in panel},
        "panel: synthesis": panel | {"draft: smollm2", "critique: smollm2-plain"},
    }
    assert flow_run.name == f"base {result.session_id}"


async def test_each_step_the_timings_and_the_answer_are_artifacts(example_project: Project) -> None:
    result = await run(base())
    flow_run = await flow_run_of(result.session_id)
    async with get_client() as client:
        by_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        found = await client.read_artifacts(artifact_filter=by_run)
    artifacts = {artifact.key: artifact for artifact in found if artifact.key}  # a result that Prefect keeps has none
    assert set(artifacts) == {
        "base-draft-smollm2",
        "base-critique-smollm2-plain",
        "base-panel-smollm2",
        "base-panel-smollm2-bold",
        "base-panel-smollm2-plain",
        "base-panel-aggregation",
        "base-draft-memory",
        "base-critique-memory",
        "base-panel-memory",
        "base-resident-models",
        "base-timings",
        "base-final-answer",
    }
    assert artifacts["base-final-answer"].data == result.answer
    assert result.steps[0].text.splitlines()[0] in artifacts["base-draft-smollm2"].data


async def test_long_answer_shows_its_progress_while_it_is_written(
    example_project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(watched, "EVERY_S", 0.0)
    seen: list[float] = []
    update = watched.update_progress_artifact
    monkeypatch.setattr(
        watched,
        "update_progress_artifact",
        lambda id, percent, **more: seen.append(percent) or update(id, percent, **more),
    )
    result = await run(base())
    flow_run = await flow_run_of(result.session_id)
    async with get_client() as client:
        by_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        artifacts = {artifact.key: artifact for artifact in await client.read_artifacts(artifact_filter=by_run)}
    shown = artifacts["base-draft-smollm2-progress"]
    assert (shown.type, shown.data) == ("progress", 100.0)
    assert shown.description == f"draft: smollm2: {result.steps[0].completion_tokens} tokens"
    assert any(0 < percent < 100 for percent in seen)


async def test_at_temperature_zero_a_run_repeats_byte_for_byte(example_project: Project) -> None:
    spec = base(*(f"{stage}.temperature=0" for stage in ("draft", "critique", "panel")))
    first, second = await run(spec), await run(spec)
    assert [step.text for step in first.steps] == [step.text for step in second.steps]
    assert first.answer == second.answer


async def test_equal_samples_of_one_model_differ_by_their_seed(example_project: Project) -> None:
    spec = override(load_pipeline(Settings().pipeline_file, "self-consistency"), ["vote.max_tokens=8"])
    result = await run(spec)
    votes = [step for step in result.steps if step.model]
    assert [step.seed for step in votes] == [1, 2, 3, 4, 5]
    assert len({step.text for step in votes}) > 1


async def test_killed_model_process_is_retried_and_the_run_finishes(example_project: Project) -> None:
    killer = OnFirstToken("critique: smollm2-plain", kill_worker)
    progress.set(killer)
    result = await run(base(retries=1))
    assert killer.done
    assert result.status == "completed"


async def test_killed_model_process_without_retries_fails_by_name_and_keeps_earlier_steps(
    example_project: Project,
) -> None:
    progress.set(OnFirstToken("critique: smollm2-plain", kill_worker))
    with pytest.raises(PipelineFailed, match=r"step 'critique: smollm2-plain' failed: .*SIGKILL") as failure:
        await run(base(retries=0))

    assert isinstance(failure.value.cause, ModelCrashed)
    session = load_session(example_project.sessions, "session_001")
    assert session.status == "failed"
    assert [step.id for step in load_steps(example_project.sessions, session)] == ["1 draft: smollm2"]
    flow_run = await flow_run_of("session_001")
    assert flow_run.state.name == "Failed"
    assert flow_run.state.message == str(failure.value)


async def test_no_model_process_outlives_a_run(example_project: Project) -> None:
    await run(base())
    assert worker_processes() == []


async def test_timeout_ends_a_generation_and_is_not_retried(example_project: Project) -> None:
    with pytest.raises(PipelineFailed, match="timeout_s") as failure:
        await run(base("draft.max_tokens=1900", "draft.timeout_s=0.3", "draft.temperature=0"), "Tell a long story.")
    assert isinstance(failure.value.cause, GenerationTimeout)


async def test_prompt_over_the_context_fails_with_both_numbers(example_project: Project) -> None:
    with pytest.raises(PipelineFailed, match=r"the prompt has \d+ tokens and n_ctx is 2048") as failure:
        await run(base(), "word " * 3000)
    assert isinstance(failure.value.cause, ContextOverflow)


async def test_empty_question_starts_nothing(example_project: Project) -> None:
    with pytest.raises(InputError, match="question is empty"):
        await run(base(), " \n ")
    assert list(example_project.sessions.iterdir()) == []


async def test_custom_template_makes_the_answer(example_project: Project) -> None:
    spec = load_pipeline(Settings().pipeline_file, "summarise-and-criticise")
    short = ["summary.max_tokens=10", "criticism.max_tokens=10", "report.max_tokens=6"]
    result = await run(override(spec, short), "Rain falls when clouds are full.")
    title, summary, criticism = result.steps[2].text, result.steps[0].text, result.steps[1].text
    assert result.answer == f"# {title}\n\n{summary}\n\n**What it leaves out:** {criticism}".strip()


async def test_missing_model_of_the_base_blocks_the_base_and_nothing_else(example_project: Project) -> None:
    models = (REPOSITORY / "config" / "models.yaml").read_text()
    absent = "  absent: {file: absent.gguf}\n  smollm2-bold:"
    example_project.models(models.replace("  smollm2-bold:", absent, 1))
    pipeline = (REPOSITORY / "config" / "pipeline.yaml").read_text()
    example_project.pipeline(pipeline.replace("model: smollm2-plain", "model: absent", 1))

    with pytest.raises(
        PlanError, match=r"model 'absent' of stage 'critique' .*models/absent\.gguf: the file is missing"
    ):
        await run(load_pipeline(Settings().pipeline_file))
    spec = load_pipeline(Settings().pipeline_file, "self-consistency")
    assert (await run(spec)).status == "completed"


async def test_every_pipeline_is_an_attribute_and_an_entrypoint(example_project: Project) -> None:
    assert pipelines.base.name == "base"
    assert pipelines.self_consistency.name == "self-consistency"
    loaded = load_flow_from_entrypoint(f"{REPOSITORY}/flows/pipelines.py:summarise-and-criticise")
    assert loaded.name == "summarise-and-criticise"
    with pytest.raises(ImportError):
        from flows.pipelines import nothing_of_that_name  # noqa: F401


def test_synchronous_caller_runs_a_pipeline_with_asyncio(example_project: Project) -> None:
    from flows.pipelines import self_consistency

    results: list[PipelineResult] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(self_consistency(question="Is ice cold?"))))
    thread.start()
    thread.join()
    assert results[0].status == "completed"
