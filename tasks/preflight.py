"""The precondition of a stage: is there memory for its models now, and side by side or one after another?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from llm_core.errors import InsufficientMemory
from llm_core.machine import RAM, fits, gib, sums
from llm_core.memory import by_device
from llm_core.memory_plan import needs_table
from llm_core.model_step import input_texts, request_of
from llm_core.placement import threads_for
from llm_core.plan import Call, StagePlan
from llm_core.prompts import user_message
from llm_core.residency import decide
from llm_core.session_records import StepRecord
from tasks.record import artifact_key
from tasks.run import Run


@dataclass(frozen=True)
class Admission:
    """What a stage's model tasks may do: `threads` by member; `parallel`: all its models are resident together."""

    stage: str
    parallel: bool
    threads: dict[str, int]


@task(cache_policy=NO_CACHE)
def preflight(run: Run, stage: StagePlan, inputs: dict[str, Any]) -> Admission:
    """Decide for this stage by the memory there is now, show need against budget, and begin to load.

    Args:
        inputs: waited for, so that the decision is made when the stage is about to run.

    Raises:
        InsufficientMemory: refused, with what would help; not retried.
    """
    within, placed, plan = run.memory_now(), run.placed, run.plan
    parallel = decide(stage, plan.execution_mode, plan.on_insufficient_memory, placed, within, run.need)
    threads = threads_for(stage, parallel, placed, run.cores)
    placements = run.stage(stage.id).placements
    key, decision = artifact_key(plan.pipeline, stage.id, "memory"), _decision(run, stage, parallel)
    table = needs_table(placements, run.residency)
    create_table_artifact(key=key, table=table, description=decision)
    if (parallel or stage.stop) and run.prefetches and not run.is_done(stage):
        for placement in placements:
            perhaps = placement.call in stage.calls and placement.call not in stage.surely_asked
            if not perhaps and not _is_known(run, stage, placement.call, threads, inputs):
                run.pool.prefetch(placement.load, placement.call.model)
        for load in run.stage(stage.id).prefetched:
            if load in run.surely_asked:
                run.pool.prefetch(load, run.model_of(load))
    return Admission(stage.id, parallel, {call.member: threads[call] for call in stage.local})


@task(name="preflight", task_run_name="preflight", cache_policy=NO_CACHE)
def refuse(refusal: InsufficientMemory) -> None:
    """Fail with `refusal`: the whole run can never fit."""
    raise refusal


def _is_known(
    run: Run, stage: StagePlan, call: Call, threads: Mapping[Call, int], inputs: Mapping[str, StepRecord]
) -> bool:
    """Whether `cache` is likely to spare the model the work; of a synthesis nobody can tell yet."""
    if not call.cache or call not in stage.calls:
        return call.cache
    message = user_message(run.session.record.question, input_texts(inputs), call.instructions)
    key = run.answers.key(run.placed[call], request_of(call, message, threads[call], run.cores))
    return key is not None and run.answers.find(key) is not None


def _decision(run: Run, stage: StagePlan, parallel: bool) -> str:
    if not stage.local:
        return f"{stage.id}: answered elsewhere; needs no memory here"
    needs = {run.placed[call]: by_device(run.need(run.placed[call])) for call in stage.local}
    total = sums(needs.values())
    how = "fits" if len(needs) == 1 else "side by side" if parallel else "one after another"
    room = "" if fits(needs.values(), run.memory_now()) else ", not all at once"
    return f"{stage.id}: {how}{room}; all its models together need {gib(total[RAM])} of RAM"
