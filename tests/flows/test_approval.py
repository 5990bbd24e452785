"""A stage that a person approves, or edits, before the run goes on."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.settings import get_current_settings

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.result import PipelineResult
from llm_core.errors import InputError
from llm_core.pipeline import load_pipeline
from llm_core.session_files import load_session
from llm_core.settings import Settings
from tasks.run import Progress, Silent, progress
from tests.conftest import REPOSITORY, Project
from tests.flows.test_cli import assert_refused, gguf_flow

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = "models: {a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0}}}"
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: a, approve: true}
    - {id: final, model: a}
"""


class Person(Silent):
    """Answers every question with `text`, or with what it is shown."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.asked: list[tuple[str, str]] = []

    def approve(self, stage: str, text: str) -> str:
        self.asked.append((stage, text))
        return text if self.text is None else self.text


@pytest.fixture
def waiting(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "a.gguf")
    return project


async def run(person: Progress) -> PipelineResult:
    progress.set(person)
    return await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")


async def test_later_stages_read_what_the_person_wrote(waiting: Project) -> None:
    person = Person("Ice is water that has a day off.")
    result = await run(person)
    draft, final = (json.loads((result.session_path / f"step{n}.json").read_text()) for n in (1, 2))
    assert person.asked == [("draft", draft["text"])]
    assert "Ice is water that has a day off." in final["prompt"]
    assert draft["text"] not in final["prompt"]
    approval = json.loads((result.session_path / "step1_approval.json").read_text())
    assert (approval["text"], approval["edited"]) == ("Ice is water that has a day off.", True)


async def test_answer_approved_as_it_is_goes_on_unchanged(waiting: Project) -> None:
    result = await run(Person())
    assert [step.kind for step in result.steps] == ["answer", "approval", "answer"]
    assert result.steps[1].text == result.steps[0].text
    assert result.steps[1].edited is False


async def test_edited_last_stage_is_the_answer_of_the_run(waiting: Project) -> None:
    waiting.pipeline("base_pipeline: {stages: [{id: only, model: a, approve: true}]}")
    result = await run(Person("Forty-two."))
    assert result.answer == "Forty-two."
    assert (result.session_path / "final.txt").read_text() == "Forty-two.\n"
    assert load_session(waiting.sessions, result.session_id).status == "completed"


async def test_stages_whose_ids_look_alike_are_approved_each_for_itself(waiting: Project) -> None:
    waiting.pipeline(PIPELINE.replace("{id: final, model: a}", "{id: Draft, model: a, approve: true}"))
    running = asyncio.create_task(run(Silent()))
    paused = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Paused"])))
    async with get_client() as client:
        for text in ("Steam.", "Snow."):
            while not (found := await client.read_flow_runs(flow_run_filter=paused)):
                assert not running.done(), running.result()
                await asyncio.sleep(0.2)
            await client.resume_flow_run(found[0].id, run_input={"text": text})
    result = await running
    assert {step.id: step.text for step in result.steps if step.kind == "approval"} == {
        "1 draft: approval": "Steam.",
        "2 Draft: approval": "Snow.",
    }


async def test_dataset_run_refuses_to_wait_for_a_person(waiting: Project) -> None:
    (waiting.path / "q.jsonl").write_text('{"question": "What is ice?"}\n')
    with pytest.raises(InputError, match="stage 'draft' of 'base' has approve: true; a dataset run can ask nobody"):
        await batch(waiting.path / "q.jsonl")


def test_run_that_could_ask_nobody_is_refused_before_it_starts(waiting: Project) -> None:
    assert_refused(gguf_flow("run", "What is ice?"), "has approve: true; run it in a terminal, or from the Prefect UI")
    assert list(waiting.sessions.glob("session_*")) == []


def in_terminal(reply: bytes) -> tuple[int, str]:
    """`gguf-flow run` in a terminal where a person types `reply` when asked; (exit code, what the screen showed)."""
    mine, theirs = pty.openpty()
    url = get_current_settings().api.url
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", "What is ice?"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": str(url), "TERM": "dumb"},
    )
    os.close(theirs)
    screen, typed = b"", False
    try:
        while chunk := os.read(mine, 65536):
            screen += chunk
            if b"go on with it" in screen and not typed:
                typed = True
                os.write(mine, reply)
    except OSError:  # how Linux says that the other end of a terminal is closed
        pass
    os.close(mine)
    return process.wait(timeout=60), screen.decode()


def test_person_in_the_terminal_sees_the_answer_and_lets_it_go_on(waiting: Project) -> None:
    code, screen = in_terminal(b"\n")
    assert code == 0, screen
    draft = json.loads((waiting.sessions / "session_001" / "step1.json").read_text())
    assert draft["text"].split()[0] in screen
    assert json.loads((waiting.sessions / "session_001" / "step1_approval.json").read_text())["edited"] is False


def test_person_in_the_terminal_ends_the_run(waiting: Project) -> None:
    code, screen = in_terminal(b"q\n")
    assert code == 130, screen
    assert load_session(waiting.sessions, "session_001").status == "cancelled"
    assert not (waiting.sessions / "session_001" / "step2.json").exists()
