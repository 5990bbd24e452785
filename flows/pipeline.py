"""A PipelineSpec becomes a Prefect flow: stages are tasks, futures are edges."""

import asyncio
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import acreate_markdown_artifact, acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.flows import Flow
from prefect.futures import PrefectFuture, wait
from prefect.states import Failed

from flows.resources import ended_by, name_run, run_resources
from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import InsufficientMemory, ModelCrashed
from llm_core.machine import gib
from llm_core.pipeline import PipelineSpec
from llm_core.plan import Plan, StagePlan
from llm_core.pool_protocol import Pool
from llm_core.prompts import check_question
from llm_core.session import Session, SessionRecord, StepRecord, list_sessions
from llm_core.settings import Settings
from tasks.aggregate import aggregate
from tasks.generate import generate
from tasks.preflight import Admission, preflight, refuse
from tasks.record import artifact_key
from tasks.run import Run

StepFuture = PrefectFuture[Any]


def compile_flow(spec: PipelineSpec, settings: Settings | None = None) -> Flow[[str], Any]:
    """The flow of a pipeline, named after it: `await compile_flow(spec)(question="…")` returns a `PipelineResult`.

    Models and plan are looked up when a run starts, so that a flow can be compiled, served and scheduled without them.
    """

    @flow(name=spec.name, description=spec.description or f"The '{spec.name}' pipeline of pipeline.yaml.")
    async def pipeline(question: str) -> Any:
        return await execute(spec, question, settings or Settings())

    return pipeline


async def execute(spec: PipelineSpec, question: str, settings: Settings) -> PipelineResult | State[Any]:
    """Run `spec` inside a flow: every finished step is saved, whatever becomes of the run.

    Raises:
        GgufFlowError: nothing was started; the message says why.
    """
    check_question(question)
    async with run_resources(spec, settings) as held:
        plan = held.plan
        session = _session_of_retry(settings) or Session.create(
            settings.sessions_folder,
            pipeline=plan.pipeline,
            question=question,
            execution_mode=plan.execution_mode,
            snapshot=held.snapshot,
            flow_run_id=runtime.flow_run.id,
        )
        try:
            naming = asyncio.create_task(name_run(f"{plan.pipeline} {session.record.id}"))
            if isinstance(held.residency, InsufficientMemory):
                await naming
                return await refused(session, held.residency)
            run = held.run(session)
            steps = _submit(run, question)
            await naming
            await asyncio.to_thread(wait, list(steps.values()))
            return await _conclude(plan, held.pool, session, steps)
        except BaseException as error:
            session.fail(f"{type(error).__name__}: {error}", ended_by(error))
            raise


def _session_of_retry(settings: Settings) -> Session | None:
    """The session of this flow run's earlier try, if it is a retry."""
    if (runtime.flow_run.run_count or 1) < 2:
        return None
    flow_run_id = runtime.flow_run.id
    for record in list_sessions(settings.sessions_folder):
        if isinstance(record, SessionRecord) and record.flow_run_id == flow_run_id:
            return Session.reopen(settings.sessions_folder, record.id, flow_run_id=flow_run_id)
    return None


async def refused(session: Session, refusal: InsufficientMemory) -> State[Any]:
    """A run that can never fit is refused before anything loads, by a failed preflight that the UI shows."""
    future = refuse.submit(refusal)
    await asyncio.to_thread(wait, [future])
    failure = failure_of("preflight", future, session.path)
    session.fail(str(failure))
    return Failed(message=str(failure), data=failure)


def _submit(run: Run, question: str) -> dict[str, StepFuture]:
    """Every task of the plan as a future, by name; futures passed on draw the graph."""
    steps: dict[str, StepFuture] = {}
    outputs: dict[str, StepFuture] = {}
    for stage in run.plan.stages:
        inputs = {source: outputs[source] for source in stage.inputs}
        name = f"preflight: {stage.id}"
        admission = preflight.with_options(name=name, task_run_name=name).submit(run, stage, inputs)  # type: ignore[arg-type]
        steps[name] = admission
        members = [_submit_call(run, stage, index, question, admission, inputs) for index in range(len(stage.calls))]
        steps |= {f"{stage.id}: {call.member}": future for call, future in zip(stage.calls, members, strict=True)}
        outputs[stage.id] = members[0]
        if stage.aggregation:
            name = f"{stage.id}: {stage.aggregation.kind}"
            merge = aggregate.with_options(name=name, task_run_name=name, retries=stage.retries)
            outputs[stage.id] = steps[name] = merge.submit(run, stage, question, members, inputs)  # type: ignore[arg-type]
    return steps


def _submit_call(
    run: Run,
    stage: StagePlan,
    index: int,
    question: str,
    admission: PrefectFuture[Admission],
    inputs: dict[str, StepFuture],
) -> StepFuture:
    call = stage.calls[index]
    name = f"{stage.id}: {call.member}"
    named = generate.with_options(name=name, task_run_name=name, retries=stage.retries)
    future: StepFuture = named.submit(run, stage, call, question, admission, inputs)  # type: ignore[call-overload]
    return future


async def _conclude(
    plan: Plan, pool: Pool, session: Session, steps: dict[str, StepFuture]
) -> PipelineResult | State[Any]:
    records: list[StepRecord] = []
    finished = 0
    failure: PipelineFailed | None = None
    for name, future in steps.items():
        if future.state.is_completed():
            finished += 1
            result = future.result()
            records += [result] if isinstance(result, StepRecord) else []
        elif future.state.is_failed() and failure is None:
            failure = failure_of(name, future, session.path)
    artifacts = [_resident_artifact(plan, pool), _timing_artifact(plan, records)]
    if failure or finished < len(steps):
        await asyncio.gather(*artifacts)
        failure = failure or PipelineFailed("a step did not finish", session.path, None)
        session.fail(str(failure))
        return Failed(message=str(failure), data=failure)
    answer = [step for step in records if step.stage == plan.final][-1].text
    session.complete(answer)
    await asyncio.gather(_answer_artifact(plan, session.record.question, answer), *artifacts)
    return PipelineResult(
        session_id=session.record.id,
        session_path=session.path,
        pipeline=plan.pipeline,
        status=session.record.status,
        answer=answer,
        steps=records,
    )


def failure_of(name: str, future: StepFuture, session_path: Path) -> PipelineFailed:
    try:
        future.result()
    except Exception as error:
        return PipelineFailed(f"step '{name}' failed: {error}", session_path, error)
    raise AssertionError(f"step '{name}' is failed and has a result")


async def _resident_artifact(plan: Plan, pool: Pool) -> None:
    """What is loaded at the end of the run: it stays so in mode `persistent`, and goes in the others."""
    try:
        residents, n_loads = pool.status(), pool.load_count
    except ModelCrashed:
        return  # the host has just gone; the answers are there
    table = [
        {
            "model": resident.model,
            "memory": ", ".join(f"{gib(size)} of {device}" for device, size in resident.bytes.items()),
            "last use": "in use" if resident.idle_s is None else f"{resident.idle_s:.1f} s ago",
            "pinned": "yes" if resident.pinned else "",
        }
        for resident in residents
    ]
    key = artifact_key(plan.pipeline, "resident-models")
    await acreate_table_artifact(key=key, table=table, description=f"Loaded at the end; {n_loads} loads")


async def _answer_artifact(plan: Plan, question: str, answer: str) -> None:
    key = artifact_key(plan.pipeline, "final-answer")
    await acreate_markdown_artifact(key=key, markdown=answer, description=question)


async def _timing_artifact(plan: Plan, records: list[StepRecord]) -> None:
    columns = ("load_s", "ttft_s", "tpot_s", "tokens_per_s", "prompt_tokens", "completion_tokens")
    table = [{"step": step.id, **{name: _rounded(getattr(step, name)) for name in columns}} for step in records]
    await acreate_table_artifact(
        key=artifact_key(plan.pipeline, "timings"), table=table, description="Timings per step"
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
