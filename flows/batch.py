"""Every question of a dataset through a pipeline, model by model: all items pass a stage before the next begins."""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import acreate_table_artifact
from prefect.client.schemas.objects import State
from prefect.futures import wait
from pydantic import BaseModel

from flows.outcome import StepFuture, failed, failure_of, refused
from flows.planned import plan_run
from flows.resources import Resources, ended_by, name_run, run_resources
from flows.result import PipelineFailed
from flows.resume import check_dataset_images, find_unfinished, output_file, refuse_approval
from llm_core.dataset import RESULT, Item, read_items
from llm_core.dataset_results import DatasetResults, step_names
from llm_core.errors import InsufficientMemory
from llm_core.fingerprint import sha256
from llm_core.overrides import override
from llm_core.pipeline import BASE, PipelineSpec, load_pipeline
from llm_core.plan import Plan
from llm_core.run_images import load_images
from llm_core.session import Session
from llm_core.session_images import Images
from llm_core.session_records import DatasetRef
from llm_core.settings import Settings
from llm_core.step_log import StepLog
from tasks.dataset_pass import StepSummary
from tasks.dataset_run import DatasetRun
from tasks.dataset_steps import aggregate_items, generate_items
from tasks.generate import stage_files
from tasks.preflight import preflight
from tasks.record import artifact_key

SHOWN_ROWS = 100
"""Rows of the results that the artifact shows; the file has them all."""


class BatchResult(BaseModel):
    """What a dataset run came to, and where its results are."""

    session_id: str
    session_path: Path
    pipeline: str
    output: Path
    n_items: int
    n_failed: int
    """Items without an answer; each has its error in its row."""
    n_loads: int
    """Of models."""
    steps: list[StepSummary]


@flow(
    name="batch",
    persist_result=True,
    description="Every question of a JSONL or CSV file through a pipeline, model by model.",
)
async def batch(
    dataset: Path,
    pipeline: str = BASE,
    output: Path | None = None,
    limit: int | None = None,
    resume: bool = False,
    overrides: list[str] | None = None,
) -> Any:
    """Go through a dataset.

    Args:
        dataset: JSONL or CSV with a `question` column; other columns pass through.
        pipeline: a pipeline of pipeline.yaml.
        output: where the results go, as JSON lines; left out: into the session.
        limit: only the first so many rows.
        resume: go on with the last run over this dataset that did not come to its end.
        overrides: `stage.param=value`, for this run only.
    """
    settings = Settings()
    spec = override(load_pipeline(settings.pipeline_file, pipeline), overrides or [])
    refuse_approval(spec)
    items = read_items(dataset, limit)
    planned = plan_run(spec, settings, settings.pipeline_file)
    check_dataset_images(spec, items, dataset, settings)
    images = await asyncio.to_thread(load_images, planned.plan, (), settings.image_sources)
    async with run_resources(planned, settings, settings.batch_sequences) as held:
        session = await asyncio.to_thread(_session, spec, held, dataset, items, images, output, resume, settings)
        try:
            await name_run(f"{spec.name} {session.record.id}")
            if isinstance(held.residency, InsufficientMemory):
                return await refused(session, held.residency)
            return await _go_through(held, session, items, settings)
        except PipelineFailed:  # its session knows already
            raise
        except BaseException as error:
            session.fail(f"{type(error).__name__}: {error}", ended_by(error))
            raise


def _session(
    spec: PipelineSpec,
    held: Resources,
    dataset: Path,
    items: list[Item],
    images: Images,
    output: Path | None,
    resume: bool,
    settings: Settings,
) -> Session:
    flow_run_id = runtime.flow_run.id
    if resume or (runtime.flow_run.run_count or 1) > 1:  # a retry goes on where the first try ended
        found = find_unfinished(settings, dataset, spec, held.snapshot, output)
        return Session.reopen(settings.sessions_folder, found.id, flow_run_id=flow_run_id)
    output_file(output, is_new=True)
    path = dataset.absolute()
    digest = sha256(path, settings.cache_folder)
    return Session.create(
        settings.sessions_folder,
        pipeline=spec.name,
        question=f"{len(items)} questions of {dataset.name}",
        execution_mode=held.plan.execution_mode,
        snapshot=held.snapshot,
        flow_run_id=flow_run_id,
        images=images,
        dataset=DatasetRef(path=path, sha256=digest, n_items=len(items), output=output and output.absolute()),
    )


async def _go_through(
    held: Resources, session: Session, items: list[Item], settings: Settings
) -> BatchResult | State[Any]:
    assert session.record.dataset
    plan, started = held.plan, time.perf_counter()
    output = session.record.dataset.output or session.path / "results.jsonl"
    with ExitStack() as opened:
        logs = _open_logs(plan, session, opened)
        results = DatasetResults(output, plan, logs)
        opened.callback(results.close)
        run = DatasetRun(held.run(session), items, logs, results, settings.image_sources)
        futures = _submit(run, plan)
        await asyncio.to_thread(wait, list(futures.values()))
        summaries = [f.result() for f in futures.values() if f.state.is_completed()]
        summaries = [summary for summary in summaries if isinstance(summary, StepSummary)]
        await _steps_artifact(plan, summaries, held.pool.load_count)
        unfinished = [name for name, future in futures.items() if not future.state.is_completed()]
        if unfinished:
            return _failed(session, futures, unfinished)
        await asyncio.to_thread(results.finish, items)
        n_failed = await _results_artifact(plan, results, items)
    tokens_per_s = sum(summary.n_tokens for summary in summaries) / (time.perf_counter() - started)
    session.complete(f"{len(items) - n_failed} of {len(items)} questions answered: {output}", tokens_per_s)
    return BatchResult(
        session_id=session.record.id,
        session_path=session.path,
        pipeline=plan.pipeline,
        output=output,
        n_items=len(items),
        n_failed=n_failed,
        n_loads=held.pool.load_count,
        steps=summaries,
    )


def _open_logs(plan: Plan, session: Session, opened: ExitStack) -> dict[str, StepLog]:
    logs: dict[str, StepLog] = {}
    for stage in plan.stages:
        files = stage_files(stage)
        members = [call.member for call in stage.calls] + ([None] if stage.aggregation else [])  # type: ignore[list-item]
        for name, member in zip(step_names(stage), members, strict=True):
            path = session.add_log(f"{stage.number} {name}", f"{files[member]}l")
            logs[name] = StepLog(path)
            opened.callback(logs[name].close)
    return logs


def _submit(run: DatasetRun, plan: Plan) -> dict[str, StepFuture]:
    """A task per stage and model, and one per aggregation, whatever the number of items."""
    futures: dict[str, StepFuture] = {}
    outputs: dict[str, StepFuture] = {}
    for stage in plan.stages:
        inputs = {source: outputs[source] for source in stage.inputs}
        name = f"preflight: {stage.id}"
        admission = preflight.with_options(name=name, task_run_name=name).submit(run, stage, inputs)  # type: ignore[arg-type]
        futures[name] = admission
        members: list[StepFuture] = []
        for call in stage.calls:
            name = f"{stage.id}: {call.member}"
            task = generate_items.with_options(name=name, task_run_name=name)
            before = {f"member {n}": member for n, member in enumerate(members)} if stage.stop else {}
            members.append(task.submit(run, stage, call, admission, inputs | before))  # type: ignore[call-overload]
            futures[name] = members[-1]
        outputs[stage.id] = members[0]
        if stage.aggregation:
            name = step_names(stage)[-1]
            merge = aggregate_items.with_options(name=name, task_run_name=name)
            outputs[stage.id] = futures[name] = merge.submit(run, stage, members, inputs)  # type: ignore[arg-type]
    return futures


def _failed(session: Session, futures: dict[str, StepFuture], unfinished: list[str]) -> State[Any]:
    """What is saved stays; `resume` goes on from there."""
    name = next((name for name in unfinished if futures[name].state.is_failed()), None)
    failure = PipelineFailed("a step did not finish", session.path, None)
    if name:
        failure = failure_of(name, futures[name], session.path)
    session.fail(str(failure))
    return failed(failure)


async def _steps_artifact(plan: Plan, summaries: list[StepSummary], n_loads: int) -> None:
    table = [
        {
            "step": summary.step,
            "items": summary.n_items,
            "failed": summary.n_failed,
            "from before": summary.n_before,
            "tokens": summary.n_tokens,
            "seconds": round(summary.wall_s, 1),
            "tokens/s": round(summary.n_tokens / summary.wall_s, 1) if summary.wall_s else None,
        }
        for summary in summaries
    ]
    key = artifact_key(plan.pipeline, "batch-steps")
    await acreate_table_artifact(key=key, table=table, description=f"All items, step by step; {n_loads} model loads")


async def _results_artifact(plan: Plan, results: DatasetResults, items: list[Item]) -> int:
    """Show the first rows; returns how many of all items have no answer."""
    n_failed = 0
    table: list[dict[str, Any]] = []
    for item in items:
        result = results.row(item)[RESULT]
        n_failed += result["error"] is not None
        if len(table) < SHOWN_ROWS:
            row = {"item": item.number, "question": item.question, "answer": result["answer"], "error": result["error"]}
            table.append(row)
    shown = "" if len(table) == len(items) else f", the first {len(table)} here"
    description = f"{len(items)} items, {n_failed} without an answer{shown}; all in {results.path}"
    await acreate_table_artifact(key=artifact_key(plan.pipeline, "batch-results"), table=table, description=description)
    return n_failed
