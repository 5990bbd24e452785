"""A finished step into the session, and its mirror in the Prefect UI."""

import threading

from prefect.artifacts import create_markdown_artifact
from slugify import slugify

from llm_core.session_records import StepRecord
from llm_core.session_report import step_markdown
from tasks.run import Run

_one_writer = threading.Lock()


def record(run: Run, step: StepRecord, file_name: str) -> None:
    """Save `step`, then show it as a markdown artifact of the task run that made it."""
    with _one_writer:
        run.session.add(step, file_name)
    if step.cache_key:
        run.answers.keep(step.cache_key, run.session.path / file_name)
    key = artifact_key(run.plan.pipeline, step.stage, step.member or step.kind)
    reused = f", reused from {step.reused_from}" if step.reused_from else ""
    create_markdown_artifact(key=key, markdown=step_markdown(step), description=f"{step.id}{reused}")


def artifact_key(*names: str) -> str:
    """Lowercase letters, digits and dashes are all Prefect takes; stable per stage, so that a key has a history."""
    return slugify("-".join(names), max_length=200) or "step"
