"""A stage that a person approves, or edits, before the run goes on."""

import json
from pathlib import Path

import pytest

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.result import PipelineResult
from llm_core.errors import InputError
from llm_core.pipeline import load_pipeline
from llm_core.session import load_session
from llm_core.settings import Settings
from tasks.run import Silent, progress
from tests.conftest import Project
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


async def run(person: Person) -> PipelineResult:
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


async def test_dataset_run_refuses_to_wait_for_a_person(waiting: Project) -> None:
    (waiting.path / "q.jsonl").write_text('{"question": "What is ice?"}\n')
    with pytest.raises(InputError, match="stage 'draft' of 'base' has approve: true; a dataset run can ask nobody"):
        await batch(waiting.path / "q.jsonl")


def test_run_that_could_ask_nobody_is_refused_before_it_starts(waiting: Project) -> None:
    assert_refused(gguf_flow("run", "What is ice?"), "has approve: true; run it in a terminal, or from the Prefect UI")
    assert list(waiting.sessions.glob("session_*")) == []
