"""A PipelineSpec becomes a Prefect flow: stages are tasks, futures are edges."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import Pause
from prefect.flows import Flow

from flows.outcome import conclude, refused
from flows.planned import Planned, plan_run
from flows.resources import ended_by, name_run, run_resources
from flows.result import PipelineFailed, PipelineResult
from flows.retry import earlier_try, open_session
from flows.stage_tasks import StageTasks
from llm_core.errors import InsufficientMemory
from llm_core.pipeline import PipelineSpec
from llm_core.prompts import check_question
from llm_core.run_images import check_images, load_images, needed_images
from llm_core.session_images import Images
from llm_core.session_records import Branch
from llm_core.settings import Settings


def compile_flow(spec: PipelineSpec, settings: Settings | None = None) -> Flow[..., Any]:
    """The flow of a pipeline, named after it: `await compile_flow(spec)(question="…")` returns a `PipelineResult`.

    Models and plan are looked up when a run starts, so that a flow can be compiled, served and scheduled without them.
    """

    @flow(
        name=spec.name,
        persist_result=True,
        description=spec.description or f"The '{spec.name}' pipeline of pipeline.yaml.",
    )
    async def pipeline(question: str, images: list[str] = []) -> Any:  # noqa: B006  nobody changes it
        chosen = settings or Settings()
        return await execute(spec, question, chosen, chosen.pipeline_file, images)

    return pipeline


async def execute(
    spec: PipelineSpec, question: str, settings: Settings, source: Path | None, images: Sequence[str] = ()
) -> PipelineResult | State[Any]:
    """Run `spec` inside a flow.

    Args:
        source: the YAML file that `spec` stands in, for messages.
        images: paths and URLs of what the question is about.

    Raises:
        GgufFlowError: nothing was started; the message says why.
    """
    check_question(question)
    planned = plan_run(spec, settings, source)
    check_images(spec, images, settings.image_sources)
    earlier = earlier_try(settings)
    if earlier and earlier.images.keys() >= set(needed_images(planned.plan, images)):  # its session has them
        return await run_planned(planned, question, settings)
    loaded = await asyncio.to_thread(load_images, planned.plan, images, settings.image_sources)
    return await run_planned(planned, question, settings, images=loaded)


async def run_planned(
    planned: Planned, question: str, settings: Settings, branch: Branch | None = None, images: Images | None = None
) -> PipelineResult | State[Any]:
    """Run what is planned inside a flow: every finished step is saved, whatever becomes of the run.

    Args:
        branch: of a rerun, with the steps that are not run again.
    """
    async with run_resources(planned, settings) as held:
        plan = held.plan
        session = open_session(held, question, settings, branch, images)
        try:
            naming = asyncio.create_task(name_run(f"{plan.pipeline} {session.record.id}"))
            if isinstance(held.residency, InsufficientMemory):
                await naming
                return await refused(session, held.residency)
            tasks = StageTasks(held.run(session), question)
            await tasks.submit_all()
            await naming
            return await conclude(plan, held.pool, session, tasks.steps, tasks.may_fail)
        except Pause:
            session.suspend()
            raise
        except PipelineFailed:  # its session knows already
            raise
        except BaseException as error:
            session.fail(f"{type(error).__name__}: {error}", ended_by(error))
            raise
