"""A question to a loaded model, and what came of it."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from llm_core.call_params import Constraint, SamplingParams
from llm_core.images import Image, pack_image, unpack_image


@dataclass(frozen=True)
class GenerateRequest:
    """One chat to be answered. `messages` are (role, content) pairs."""

    messages: tuple[tuple[str, str], ...]
    sampling: SamplingParams
    strip_reasoning: bool = False
    threads: int = 1
    """Decoding threads to ask the pool for, and exactly so many for an answer that is decoded alone."""
    most_threads: int = 0
    """Up to so many for the others, where cores come free meanwhile."""
    constraint: Constraint | None = None
    chosen: tuple[str, ...] = ()
    """Of `sampling`, what a remote model is told; the rest is left to its provider."""
    images: tuple[Image, ...] = ()
    """Of the last message of the user, before its text."""


def pack_request(request: GenerateRequest) -> dict[str, Any]:
    """For a journey as JSON."""
    return {**asdict(replace(request, images=())), "images": [pack_image(image) for image in request.images]}


def unpack_request(data: dict[str, Any]) -> GenerateRequest:
    """The request that `pack_request` took apart, after a journey as JSON, which knows no tuples."""
    sampling = dict(data["sampling"])
    sampling["stop"] = tuple(sampling["stop"])
    sampling["logit_bias"] = tuple((text, bias) for text, bias in sampling["logit_bias"])
    messages = tuple((role, content) for role, content in data["messages"])
    constraint = Constraint(**data["constraint"]) if data.get("constraint") else None
    images = tuple(unpack_image(image) for image in data["images"])
    parts = {"messages": messages, "sampling": SamplingParams(**sampling), "constraint": constraint, "images": images}
    return GenerateRequest(**{**data, **parts, "chosen": tuple(data["chosen"])})


@dataclass(frozen=True)
class GenerateResult:
    """One answer and how it came about; durations in seconds. Of a remote model much is `None`: not known."""

    text: str
    reasoning: str | None
    """What stood in `<think>…</think>`, where it was stripped, or before an answer that is held to a constraint."""
    finish_reason: str
    """`stop`: the model ended or a stop string came; `length`: `max_tokens` or the context was used up."""
    build: str | None
    """Of llama.cpp: version and what it was compiled for; other builds may draw other tokens."""
    prompt: str | None
    """Exactly what the model was given, chat template applied."""
    prompt_tokens: int | None
    cached_prompt_tokens: int | None
    """Of these, so many were already in the KV cache, from another prompt that begins alike."""
    completion_tokens: int | None
    tokens: tuple[int, ...] | None
    """Of the completion, by the model's vocabulary; without the one that ended it."""
    seed: int | None
    peak_rss_bytes: int | None
    """The most RAM the model's process has held up to this answer."""
    peak_vram_bytes: int | None
    """Its VRAM at this answer's end; `None` on the CPU or where NVML does not tell."""
    load_s: float | None
    """Of loading the model, told with its first answer; 0.0 with later ones."""
    ttft_s: float | None
    """From the request's arrival to its first token: waiting for a free sequence, prompt processing, one decode."""
    tpot_s: float | None
    """Per token after the first; `None` for an answer of fewer than two tokens."""
    tokens_per_s: float | None
    """Completion tokens over the time from the start of prompt processing to the last token."""
    degraded: tuple[str, ...] = ()
    """What had to be given up for want of memory."""
    truncated: bool = False
    """Whether it was cut off, and got an end that its constraint allows."""
    logprobs: tuple[tuple[int, float], ...] = ()
    """Where its constraint asks for them: of each token of the text, the byte where it ends and its log probability
    among those that the constraint allowed, at temperature 1."""
    drafted_tokens: int | None = None
    """Guessed from the prompt and the answer (`prompt_lookup`), to be checked several at once."""
    accepted_tokens: int | None = None
    """Of these, so many came true."""
    answered_by: str | None = None
    """What a remote provider calls the model that answered."""


def unpack_result(data: dict[str, Any]) -> GenerateResult:
    """The result that `asdict` took apart, after a journey as JSON."""
    logprobs = tuple((end, logprob) for end, logprob in data["logprobs"])
    tuples = {"tokens": tuple(data["tokens"]), "degraded": tuple(data["degraded"]), "logprobs": logprobs}
    return GenerateResult(**{**data, **tuples})
