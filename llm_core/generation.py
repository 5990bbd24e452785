"""A question to a loaded model, and what came of it."""

from dataclasses import dataclass

from llm_core.parameters import SamplingParams


@dataclass(frozen=True)
class GenerateRequest:
    """One chat to be answered. `messages` are (role, content) pairs."""

    messages: tuple[tuple[str, str], ...]
    sampling: SamplingParams
    strip_reasoning: bool = False


@dataclass(frozen=True)
class GenerateResult:
    """One answer and how it came about; durations in seconds."""

    text: str
    reasoning: str | None
    """What stood in `<think>…</think>`, where it was stripped."""
    finish_reason: str
    """`stop`: the model ended or a stop string came; `length`: `max_tokens` or the context was used up."""
    prompt: str
    """Exactly what the model was given, chat template applied."""
    prompt_tokens: int
    completion_tokens: int
    seed: int
    load_s: float
    """Spent loading the model for this answer; 0.0 where it was loaded already."""
    ttft_s: float
    """From the request's arrival to its first token: prompt processing and one decode."""
    tpot_s: float | None
    """Per token after the first; `None` for an answer of fewer than two tokens."""
    tokens_per_s: float
    """Completion tokens over the time from the request's arrival to its last token."""
