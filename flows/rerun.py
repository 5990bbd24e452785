"""A stage of an earlier run again, and what depends on it; everything else is carried over from that run."""

import asyncio
from typing import Any

from prefect import flow
from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact
from prefect.utilities.urls import url_for
from pydantic import Field

from flows.diff_view import diff_markdown
from flows.pipeline import run_planned
from flows.planned import Planned
from flows.result import PipelineResult
from llm_core.documents import Document, validate
from llm_core.manual_pipeline import ModelName, or_empty
from llm_core.registry import load_registry
from llm_core.rerun import Changes, Rerun, plan_rerun
from llm_core.session_diff import diff_sessions
from llm_core.session_records import Branch
from llm_core.settings import Settings
from tasks.record import artifact_key


class StageChange(Document):
    """What one stage does differently this time."""

    stage: str = Field(title="Stage")
    model: ModelName | None = Field(
        None, title="Model", description="In place of its own. Empty: its own.", json_schema_extra=or_empty
    )
    instructions: str = Field("", title="Instructions", description="In place of its own. Empty: its own.")
    parameters: tuple[str, ...] = Field((), title="Parameters", description="Such as temperature=0.2.")


class RerunChanges(Document):
    """As the form has them, stage by stage."""

    changes: tuple[StageChange, ...] = ()
    times: int = Field(1, ge=1, le=1000)

    def by_kind(self) -> Changes:
        assignments = (f"{change.stage}.{parameter}" for change in self.changes for parameter in change.parameters)
        models = {change.stage: change.model for change in self.changes if change.model}
        prompts = {change.stage: change.instructions for change in self.changes if change.instructions}
        return Changes(tuple(assignments), models, prompts)


def stage_changes(changes: Changes) -> list[StageChange]:
    """As the flow takes them."""
    parameters: dict[str, list[str]] = {}
    for assignment in changes.assignments:
        target, _, value = assignment.partition("=")
        stage, _, parameter = target.rpartition(".")
        parameters.setdefault(stage, []).append(f"{parameter}={value}")
    return [
        StageChange(
            stage=stage,
            model=changes.models.get(stage),
            instructions=changes.prompts.get(stage, ""),
            parameters=tuple(parameters.get(stage, ())),
        )
        for stage in dict.fromkeys((*parameters, *changes.models, *changes.prompts))
    ]


# What is wrong is said in our own words: one line, with the key path.
@flow(
    name="rerun",
    persist_result=True,
    validate_parameters=False,
    description="An earlier run again, from one of its stages on.",
)
async def rerun(
    session: str,
    from_stage: str,
    changes: list[StageChange] = [],  # noqa: B006  nobody changes it, and with None the form has a choice of types first
    times: int = 1,
) -> Any:
    """Run a stage of an earlier session again, with all that depends on it, into a session of its own.

    Args:
        session: Such as session_001.
        from_stage: The first stage that runs again; what it reads is carried over.
        changes: What stages do differently this time.
        times: How often; each time is a session of its own.
    """
    asked = validate({"changes": changes, "times": times}, RerunChanges, "rerun")
    wanted = asked.by_kind()
    if asked.times == 1:
        return await rerun_once(session, from_stage, wanted, Settings())
    return [await one_of_several(session, from_stage, wanted, number) for number in range(asked.times)]


@flow(name="rerun once", validate_parameters=False)
async def one_of_several(session: str, from_stage: str, changes: Changes, number: int) -> Any:
    """A flow run of its own, so that its tasks are told from those of the others."""
    return await rerun_once(session, from_stage, changes, Settings())


async def rerun_once(session: str, from_stage: str, changes: Changes, settings: Settings) -> Any:
    """One child session of `session`, inside a flow.

    Raises:
        GgufFlowError: nothing was started; the message says why.
    """
    planned = await asyncio.to_thread(prepare, session, from_stage, changes, settings)
    await _link_to_parent(planned.branch)
    what = Planned(planned.spec, planned.plan, planned.registry, planned.again, planned.snapshot.models)
    result = await run_planned(what, planned.question, settings, planned.branch, planned.images)
    if isinstance(result, PipelineResult):
        await _diff_to_parent(planned.branch, result, settings)
    return result


def prepare(session: str, from_stage: str, changes: Changes, settings: Settings) -> Rerun:
    """What would run again, and what is carried over.

    Raises:
        GgufFlowError: one line that says why it cannot be done.
    """
    today = load_registry(settings)
    return plan_rerun(settings.sessions_folder, session, from_stage, changes, today, settings.cache_folder)


async def _link_to_parent(branch: Branch) -> None:
    if not branch.parent_flow_run_id:
        return
    link = url_for("flow-run", obj_id=branch.parent_flow_run_id)
    if link:  # a temporary server has no address to come back to
        key = artifact_key(branch.parent, "parent")
        await acreate_link_artifact(link=link, link_text=branch.parent, key=key, description="The run this comes from")


async def _diff_to_parent(branch: Branch, result: PipelineResult, settings: Settings) -> None:
    diff = await asyncio.to_thread(diff_sessions, settings.sessions_folder, branch.parent, result.session_id)
    key = artifact_key(result.pipeline, "diff")
    description = f"What differs between {branch.parent} and {result.session_id}"
    await acreate_markdown_artifact(key=key, markdown=diff_markdown(diff), description=description)
