"""One model answers in one stage."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from llm_core.errors import ModelCrashed
from llm_core.generation import GenerateRequest
from llm_core.plan import Call, StagePlan
from llm_core.prompts import chat, stage_output, user_message
from llm_core.session import StepRecord, step_files
from tasks.preflight import Admission
from tasks.record import record
from tasks.run import Run, progress


def crashed(task: Any, task_run: Any, state: Any) -> bool:
    """Retry condition: only a model process that died may do better the next time."""
    try:
        state.result()
    except ModelCrashed:
        return True
    except Exception:
        return False
    return False


@task(cache_policy=NO_CACHE, retry_condition_fn=crashed)
def generate(run: Run, stage: StagePlan, call: Call, admission: Admission, inputs: dict[str, StepRecord]) -> StepRecord:
    """Ask `call`'s model; the answer is in the session before the task ends.

    Args:
        admission: of this stage's preflight.
        inputs: the last step of each stage that this one reads.
    """
    texts = {source: step.output or step.text for source, step in inputs.items()}
    message = user_message(run.question, texts, call.instructions)
    answer = ask(run, stage, call, f"{stage.id}: {call.member}", message, admission.threads[call.member])
    single = stage.aggregation is None
    output = stage_output(stage.output_mode, run.question, texts, answer.text) if single else None
    answer = answer.model_copy(update={"output": output, "position": stage.calls.index(call)})
    files = step_files(stage.number, [c.member for c in stage.calls], aggregated=not single)
    record(run, answer, files[call.member])
    return answer


def ask(run: Run, stage: StagePlan, call: Call, step: str, message: str, threads: int) -> StepRecord:
    """One generation as the record of `step`, shown to whoever watches."""
    watcher = progress.get()
    started = datetime.now(UTC)
    request = GenerateRequest(
        chat(call.system_prompt, message), call.sampling, call.strip_reasoning, threads, call.threads or run.cores
    )
    load = run.placed[call]
    watcher.begin(step, call.model)
    result = run.pool.generate(load, call.model, request, lambda _, n: watcher.token(step, n))
    if not result.degraded:
        run.estimates.measured(load, result.peak_rss_bytes, result.peak_vram_bytes)
    for note in result.degraded:
        watcher.say(note)
    answer = StepRecord(
        id=f"{stage.number} {step}",
        number=stage.number,
        stage=stage.id,
        member=call.member,
        model=call.model,
        system_prompt=call.system_prompt,
        parameters={**asdict(call.sampling), **asdict(load), "threads": threads} | {"seed": result.seed},
        started=started,
        ended=datetime.now(UTC),
        **asdict(result),
    )
    watcher.end(step, answer)
    return answer
