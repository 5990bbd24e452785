"""A step that a rerun takes over from its parent session."""

from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from llm_core.session_files import load_step
from llm_core.session_records import StepRecord
from llm_core.session_report import step_markdown
from tasks.record import artifact_key
from tasks.run import Run


@task(cache_policy=NO_CACHE)
def reuse(run: Run, step_id: str, inputs: dict[str, Any]) -> StepRecord:
    """The step as the parent's run left it; nothing is computed.

    Args:
        inputs: draws the graph.
    """
    session = run.session
    step = load_step(session.path.parent, session.record, step_id)
    key = artifact_key(run.plan.pipeline, step.stage, step.member or step.kind)
    markdown = f"*Carried over from {session.record.parent}.*\n\n{step_markdown(step)}"
    create_markdown_artifact(key=key, markdown=markdown, description=f"{step.id}, reused")
    return step
