"""A step in which a model answers: what it is asked, and the record of what came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from llm_core.call_params import MAX_SEED, LoadParams
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.images import Image
from llm_core.plan import Call, StagePlan
from llm_core.prompts import chat, stage_output
from llm_core.session_records import StepRecord
from llm_core.structured import parsed_answer

SEED_STEP = 1_000_003
"""Between the seeds of two items; a prime so large that no item's are those of another's samples."""


def request_of(call: Call, message: str, threads: int, cores: int, images: tuple[Image, ...] = ()) -> GenerateRequest:
    """The chat that `call`'s model gets.

    Args:
        threads: to decode with; where cores come free meanwhile, as many as `cores`.
        images: that it looks at.
    """
    messages = chat(call.system_prompt, message)
    most_threads = call.threads or cores
    return GenerateRequest(
        messages, call.sampling, call.strip_reasoning, threads, most_threads, call.constraint, call.chosen, images
    )


def of_item(item: int, request: GenerateRequest) -> GenerateRequest:
    """`request` with the seed of an item of a dataset: with one for all, every item would begin with the same random
    number, and all be lucky or unlucky together. The first item's is the seed as it is written.
    """
    if request.sampling.seed is None:
        return request
    seed = (request.sampling.seed + SEED_STEP * (item - 1)) % (MAX_SEED + 1)
    return replace(request, sampling=replace(request.sampling, seed=seed))


def record_of(
    stage: StagePlan,
    call: Call,
    step: str,
    load: LoadParams | None,
    threads: int,
    result: GenerateResult,
    started: datetime,
) -> StepRecord:
    """`result` as the record of `step`, which ends now.

    Args:
        load: as its model was loaded; `None`: it is remote.

    Raises:
        ConstraintError: the answer is not what its schema says.
    """
    return StepRecord(
        id=f"{stage.number} {step}",
        number=stage.number,
        stage=stage.id,
        member=call.member,
        model=call.model,
        parsed=parsed_answer(call.constraint, result.text),
        system_prompt=call.system_prompt,
        parameters=_parameters(call, load, threads) | {"seed": result.seed},
        started=started,
        ended=datetime.now(UTC),
        **asdict(result),
    )


def _parameters(call: Call, load: LoadParams | None, threads: int) -> dict[str, Any]:
    if load:
        return {**asdict(call.sampling), **asdict(load), "threads": threads}
    assert call.remote
    told = {name: getattr(call.sampling, name) for name in (*call.chosen, "max_tokens", "timeout_s")}
    return told | {"provider": call.remote.provider, "provider_model": call.remote.model}


def reused_record(stage: StagePlan, call: Call, step: str, session_id: str, found: StepRecord) -> StepRecord:
    """An earlier answer as the record of `step`: without the time and the memory that it took then."""
    now = datetime.now(UTC)
    spent = dict.fromkeys(("load_s", "ttft_s", "tpot_s", "tokens_per_s", "peak_rss_bytes", "peak_vram_bytes"))
    return found.model_copy(
        update=spent
        | {
            "id": f"{stage.number} {step}",
            "number": stage.number,
            "position": 0,
            "stage": stage.id,
            "kind": "answer",
            "member": call.member,
            "model": call.model,
            "output": None,
            "aggregation": None,
            "reused_from": session_id,
            "started": now,
            "ended": now,
        }
    )


def as_member(stage: StagePlan, call: Call, question: str, texts: Mapping[str, str], answer: StepRecord) -> StepRecord:
    """`answer` at its member's place in the stage, with what a stage of one member hands on."""
    output = None if stage.aggregation else handed_on(stage, question, texts, answer.text)
    return answer.model_copy(update={"output": output, "position": stage.calls.index(call)})


def handed_on(stage: StagePlan, question: str, texts: Mapping[str, str], answer: str) -> str:
    """What later stages read of a stage with this answer, which is nothing of its earlier layers."""
    return stage_output(stage.output_mode, question, written_texts(stage, texts), answer)


def written_texts(stage: StagePlan, texts: Mapping[str, str]) -> dict[str, str]:
    """Of the texts that a stage reads, those of the stages that it names."""
    return {source: text for source, text in texts.items() if source != stage.layer_before}


def input_texts(inputs: Mapping[str, StepRecord]) -> dict[str, str]:
    """What each stage that is read hands on, by the last step of it."""
    return {source: step.output or step.text for source, step in inputs.items()}


def throughput(steps: Iterable[StepRecord]) -> float | None:
    """Tokens/s of the models that answered in `steps`, over the time in which at least one of them was at work."""
    n_tokens, busy_s, end = 0, 0.0, datetime.min.replace(tzinfo=UTC)
    for step in sorted((step for step in steps if step.completion_tokens), key=lambda step: step.started):
        n_tokens += step.completion_tokens or 0
        busy_s += max(0.0, (step.ended - max(step.started, end)).total_seconds())
        end = max(end, step.ended)
    return n_tokens / busy_s if busy_s else None
