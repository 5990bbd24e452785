"""A cascade asks its members one after another, while they disagree. Real models, real Prefect server."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.flow_engine import run_flow_async
from prefect.states import Scheduled

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.replay_command import replay_session
from flows.rerun import StageChange, rerun
from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import AggregationError, InsufficientMemory, ModelCrashed
from llm_core.pipeline import load_pipeline
from llm_core.pool import ModelPool
from llm_core.session_files import load_session
from llm_core.settings import Settings
from tasks import aggregate as aggregate_task
from tasks.run import Silent, progress
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")
# Three names of one file, which say the same; `brief` says less of it, `short` can read no more than 32 tokens.
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0}}
  same: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0}}
  again: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0}}
  brief: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 2, temperature: 0}}
  short: {file: a.gguf, overrides: {n_ctx: 64, max_tokens: 6, temperature: 0}}
  other: {file: b.gguf, overrides: {n_ctx: 512, max_tokens: 6, temperature: 0}}
"""
QUESTION = "What is ice?"
LONG = "What is ice, and where can it be found? " * 8


@pytest.fixture
def asked(project: Project, smollm: Path, variants: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were really asked or loaded ahead, in order."""
    project.models(MODELS)
    project.link_model(smollm, "a.gguf")
    project.link_model(variants["Q8_0"], "b.gguf")
    models: list[str] = []
    for name in ("generate", "prefetch"):
        real = getattr(ModelPool, name)

        def noted(self: ModelPool, load: Any, model: str, *rest: Any, real: Any = real, name: str = name) -> Any:
            models.append(model if name == "generate" else f"({model})")
            return real(self, load, model, *rest)

        monkeypatch.setattr(ModelPool, name, noted)
    return models


def pipeline(project: Project, stage: str, *others: str) -> Any:
    stages = ", ".join((f"{{id: panel, {stage}}}", *others))
    project.pipeline(f"base_pipeline: {{stages: [{stages}]}}")
    return compile_flow(load_pipeline(Settings().pipeline_file))


def evidence(result: PipelineResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.session_path / "step1_aggregation.json").read_text())["aggregation"]
    return found


async def states(session_id: str) -> dict[str, tuple[str, str]]:
    """(type, name) of each task's state."""
    flow_run_id = load_session(Settings().sessions_folder, session_id).flow_run_id
    async with get_client() as client:
        runs = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    return {run.name: (run.state.type.value, run.state.name) for run in runs if run.state}


async def retried(flow: Any, flow_run_id: str) -> PipelineResult:
    """As the button in the UI does it."""
    async with get_client() as client:
        await client.set_flow_run_state(UUID(flow_run_id), Scheduled(name="AwaitingRetry"), force=True)
        flow_run = await client.read_flow_run(UUID(flow_run_id))
    result: PipelineResult = await run_flow_async(flow, flow_run=flow_run, parameters={"question": QUESTION})
    return result


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


async def test_members_who_agree_spare_those_written_after_them(project: Project, asked: list[str]) -> None:
    terminal = Said()
    progress.set(terminal)
    result = await pipeline(project, "models: [a, same, other], aggregation: cascade")(question=QUESTION)
    progress.set(Silent())
    assert asked == ["(a)", "(same)", "a", "same"], "the third is not even loaded"
    found = evidence(result)
    assert (found["asked"], found["not_asked"]) == (["a", "same"], ["other"])
    assert found["agreement"] == {"a": 1, "same": 1}
    assert found["agreed"] == ["a", "same"]
    assert found["counts"] == {result.answer.strip(" .").lower(): 2}
    members = [json.loads((result.session_path / f"step1_{name}.json").read_text()) for name in ("a", "same")]
    assert found["tokens"] == {
        member["member"]: {"prompt": member["prompt_tokens"], "completion": member["completion_tokens"]}
        for member in members
    }
    assert terminal.lines == ["panel: enough members agree; not asked: other"]
    assert not (result.session_path / "step1_other.json").exists()
    assert [step.id for step in result.steps] == ["1 panel: a", "1 panel: same", "1 panel: cascade"]
    task_states = await states(result.session_id)
    assert task_states["panel: other"] == ("COMPLETED", "NotAsked")
    assert {kind for kind, _ in task_states.values()} == {"COMPLETED"}


async def test_next_member_is_asked_while_they_disagree(project: Project, asked: list[str]) -> None:
    stage = "models: [brief, a, same, again, other], aggregation: {type: cascade, threshold: 0.75}"
    result = await pipeline(project, stage)(question=QUESTION)
    found = evidence(result)
    assert found["agreement"] == {"brief": 1, "a": 0.5, "same": 0.6667, "again": 0.75}
    assert found["not_asked"] == ["other"]
    assert found["agreed"] == ["a", "same", "again"]
    assert result.answer == found["candidates"]["a"]
    assert asked[-4:] == ["brief", "a", "same", "again"]


async def test_samples_of_one_model_are_drawn_while_they_disagree(project: Project, asked: list[str]) -> None:
    stage = "model: a, samples: 5, aggregation: {type: cascade, threshold: 1, at_least: 3}"
    found = evidence(await pipeline(project, stage)(question=QUESTION))
    assert found["asked"] == ["a", "a_2", "a_3"]


async def test_member_that_fails_is_no_vote_and_the_next_is_asked(project: Project, asked: list[str]) -> None:
    stage = "models: [short, a, same, other], quorum: 2, aggregation: cascade"
    result = await pipeline(project, stage)(question=LONG)
    found = evidence(result)
    assert found["asked"] == ["short", "a", "same"]
    assert found["agreement"] == {"a": 1, "same": 1}
    (note,) = result.degraded
    assert note.startswith("panel: 2 of 3 members answered, and its quorum is 2: short: model 'short': the prompt has")


async def test_without_a_quorum_a_member_that_fails_is_the_end(project: Project, asked: list[str]) -> None:
    with pytest.raises(PipelineFailed, match="step 'panel: short' failed: model 'short': the prompt has"):
        await pipeline(project, "models: [a, short, same, other], aggregation: cascade")(question=LONG)
    assert "other" not in asked
    assert "same" not in asked


async def test_too_few_answers_fail_when_nobody_is_left_to_ask(project: Project, asked: list[str]) -> None:
    with pytest.raises(PipelineFailed, match=r"panel: 1 of 3 members answered, and its quorum is 2: short: "):
        await pipeline(project, "models: [short, a, short], quorum: 2, aggregation: cascade")(question=LONG)


async def test_value_of_the_chosen_answer_is_kept(project: Project, asked: list[str]) -> None:
    schema = "{type: object, properties: {cold: {type: boolean}}, required: [cold], additionalProperties: false}"
    stage = f"models: [a, same, other], generation: {{max_tokens: 20}}, aggregation: cascade, response_schema: {schema}"
    result = await pipeline(project, stage)(question=QUESTION)
    merged = json.loads((result.session_path / "step1_aggregation.json").read_text())
    assert merged["parsed"] == json.loads(result.answer)
    assert merged["aggregation"]["not_asked"] == ["other"]


async def test_retried_run_asks_nobody_again(
    project: Project, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = pipeline(project, "models: [a, same, other], aggregation: cascade", "{id: final, model: brief, retries: 0}")
    generate, failures = ModelPool.generate, iter([ModelCrashed("model 'brief': its process ended")])

    def failing_once(self: ModelPool, load: Any, model: str, *rest: Any) -> Any:
        if model == "brief" and (failure := next(failures, None)):
            raise failure
        return generate(self, load, model, *rest)

    monkeypatch.setattr(ModelPool, "generate", failing_once)
    with pytest.raises(PipelineFailed, match="step 'final: brief' failed"):
        await flow(question=QUESTION)
    result = await retried(flow, load_session(project.sessions, "session_001").flow_run_id or "")
    assert [model for model in asked if "(" not in model] == ["a", "same", "brief"]
    assert "(other)" not in asked
    assert result.session_id == "session_001"
    assert evidence(result)["not_asked"] == ["other"]


async def test_retried_run_asks_whom_it_needs_now(
    project: Project, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`brief` fails at first; when it answers after all, it disagrees, and one more is needed."""
    stage = "models: [a, brief, same, other], quorum: 2, retries: 0, aggregation: {type: cascade, threshold: 0.9}"
    flow = pipeline(project, stage)
    generate, merge = ModelPool.generate, aggregate_task.merged
    failures = iter([ModelCrashed("model 'brief': its process ended")])
    ends = iter([AggregationError("the run ends here")])

    def failing_once(self: ModelPool, load: Any, model: str, *rest: Any) -> Any:
        if model == "brief" and (failure := next(failures, None)):
            raise failure
        return generate(self, load, model, *rest)

    def merged_later(*arguments: Any) -> Any:
        if end := next(ends, None):
            raise end
        return merge(*arguments)

    monkeypatch.setattr(ModelPool, "generate", failing_once)
    monkeypatch.setattr(aggregate_task, "merged", merged_later)
    with pytest.raises(PipelineFailed, match="the run ends here"):
        await flow(question=QUESTION)
    assert [model for model in asked if "(" not in model] == ["a", "same"]
    asked.clear()
    result = await retried(flow, load_session(project.sessions, "session_001").flow_run_id or "")
    assert [model for model in asked if "(" not in model] == ["brief", "other"]
    assert evidence(result)["asked"] == ["a", "brief", "same", "other"]


async def test_rerun_of_a_later_stage_carries_the_cascade_over(project: Project, asked: list[str]) -> None:
    await pipeline(project, "models: [a, same, other], aggregation: cascade", "{id: final, model: brief}")(
        question=QUESTION
    )
    asked.clear()
    result = await rerun("session_001", "final")
    assert [model for model in asked if "(" not in model] == ["brief"]
    carried = load_session(project.sessions, result.session_id).reused
    assert carried == ("1 panel: a", "1 panel: same", "1 panel: cascade")


async def test_other_threshold_asks_only_those_who_have_not_answered(project: Project, asked: list[str]) -> None:
    await pipeline(project, "models: [brief, a, same, other], aggregation: {type: cascade, threshold: 0.6}")(
        question=QUESTION
    )
    asked.clear()
    higher = [StageChange(stage="panel", parameters=("threshold=0.9",))]
    found = evidence(await rerun("session_001", "panel", changes=higher))
    assert [model for model in asked if "(" not in model] == ["other"]
    assert list(found["agreement"]) == ["brief", "a", "same", "other"]
    asked.clear()
    lower = [StageChange(stage="panel", parameters=("threshold=0.5",))]
    found = evidence(await rerun("session_001", "panel", changes=lower))
    assert asked == []
    assert (found["asked"], found["not_asked"]) == (["brief", "a"], ["same", "other"])


async def test_cascade_is_replayed(project: Project, asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    await pipeline(project, "models: [brief, a, same, other], aggregation: cascade")(question=QUESTION)
    capsys.readouterr()
    assert replay_session("session_001", Settings(), verify=True, as_json=True) == 0
    steps = {step["step"]: step["outcome"] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps == dict.fromkeys(("1 panel: brief", "1 panel: a", "1 panel: same", "1 panel: cascade"), "identical")


async def test_items_of_a_dataset_go_on_only_as_far_as_they_need(project: Project, asked: list[str]) -> None:
    """`short` fails the long question, so that the next one is asked for it alone."""
    pipeline(project, "models: [a, short, same, other], quorum: 2, aggregation: cascade")
    path = project.path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in (QUESTION, LONG, "Who are you?")))
    result = await batch(path)
    assert result.n_failed == 0
    assert asked == ["a", "a", "a", "short", "short", "short", "same"]
    assert result.n_loads == 2, "a and short; `same` is a, and `other` is asked nothing"
    assert [(step.step, step.n_items, step.n_failed) for step in result.steps] == [
        ("panel: a", 3, 0),
        ("panel: short", 3, 1),
        ("panel: same", 1, 0),
        ("panel: other", 0, 0),
        ("panel: cascade", 3, 0),
    ]
    found = [json.loads(line)["result"] for line in result.output.read_text().splitlines()]
    assert [row["error"] for row in found] == [None, None, None]
    assert [list(row["steps"]["panel"]["members"]) for row in found] == [["a", "short"], ["a", "same"], ["a", "short"]]
    assert found[1]["steps"]["panel"]["evidence"]["asked"] == ["a", "short", "same"]
    (note,) = found[1]["degraded"]
    assert note.startswith("panel: 2 of 3 members answered, and its quorum is 2: short: ")


async def test_resumed_dataset_asks_nobody_again(
    project: Project, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline(project, "models: [a, short, same, other], quorum: 2, aggregation: cascade")
    path = project.path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": question}) + "\n" for question in (QUESTION, LONG)))
    generate = ModelPool.generate

    def without_same(self: ModelPool, load: Any, model: str, *rest: Any) -> Any:
        if model == "same":
            raise InsufficientMemory("no room for same")
        return generate(self, load, model, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(ModelPool, "generate", without_same)
        with pytest.raises(PipelineFailed, match="step 'panel: same' failed: no room for same"):
            await batch(path)
    assert asked == ["a", "a", "short", "short"]
    asked.clear()
    result = await batch(path, resume=True)
    assert asked == ["same"]
    assert (result.n_items, result.n_failed) == (2, 0)


async def test_item_whose_member_fails_without_a_quorum_is_failed_and_goes_no_further(
    project: Project, asked: list[str]
) -> None:
    pipeline(project, "models: [short, a, same], aggregation: cascade")
    path = project.path / "questions.jsonl"
    path.write_text(json.dumps({"question": LONG}) + "\n")
    result = await batch(path)
    assert (result.n_failed, asked) == (1, ["short"])
    (row,) = (json.loads(line)["result"] for line in result.output.read_text().splitlines())
    assert row["error"].startswith("1 panel: short: model 'short': the prompt has")
