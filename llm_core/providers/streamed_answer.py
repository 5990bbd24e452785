"""The answer of a remote model, as it comes in pieces."""

import json
import time
from typing import Any

from llm_core.closing import closed
from llm_core.errors import ConstraintError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.structured import validate_json
from llm_core.text_stream import split_reasoning
from llm_core.worker import OnToken

SILENCE_S = 600.0
"""Without a sign of life for so long, a server is taken for dead."""
CONNECT_TIMEOUT_S = 10.0


class StreamedAnswer:
    """Collects text, reasoning and figures."""

    def __init__(self, request: GenerateRequest, on_token: OnToken | None) -> None:
        self._request, self._on_token = request, on_token
        self._started = time.perf_counter()
        self._first_s: float | None = None
        self._last_s = 0.0
        self._pieces: list[str] = []
        self._thoughts: list[str] = []
        self.finish_reason: str | None = None
        """`stop` or `length`; `None` as long as the answer has not ended."""
        self.prompt_tokens: int | None = None
        self.cached_prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.answered_by: str | None = None
        self.logprobs: list[tuple[int, float]] = []
        self.n_bytes = 0

    def text(self, piece: str | None) -> None:
        """The next piece of the answer."""
        if piece:
            self._pieces.append(piece)
            self.n_bytes += len(piece.encode())
            self._arrived(piece)

    def thought(self, piece: str | None) -> None:
        """The next piece of what is thought before the answer, where the server keeps it apart."""
        if piece:
            self._thoughts.append(piece)
            self._arrived("")

    def result(self) -> GenerateResult:
        """What has come, held to the request's schema.

        Raises:
            ConstraintError: it is not what the schema says.
        """
        assert self.finish_reason is not None
        text, reasoning = "".join(self._pieces), "".join(self._thoughts).strip() or None
        if self._request.strip_reasoning:
            text, inner = split_reasoning(text)
            reasoning = reasoning or inner
        text, truncated = _held_to_schema(self._request, text, self.finish_reason)
        n = self.completion_tokens
        first_s, last_s = self._first_s, self._last_s
        after_first_s = last_s - first_s if first_s is not None else 0.0
        return GenerateResult(
            text=text,
            reasoning=reasoning,
            finish_reason=self.finish_reason,
            build=None,
            prompt=None,
            prompt_tokens=self.prompt_tokens,
            cached_prompt_tokens=self.cached_prompt_tokens,
            completion_tokens=n,
            tokens=None,
            seed=self._request.sampling.seed if "seed" in self._request.chosen else None,
            peak_rss_bytes=None,
            peak_vram_bytes=None,
            load_s=None,
            ttft_s=first_s,
            tpot_s=after_first_s / (n - 1) if n and n > 1 and after_first_s else None,
            tokens_per_s=n / last_s if n and last_s else None,
            truncated=truncated,
            logprobs=() if truncated else tuple(self.logprobs),
            answered_by=self.answered_by,
        )

    def _arrived(self, piece: str) -> None:
        self._last_s = self._elapsed_s()
        self._first_s = self._last_s if self._first_s is None else self._first_s
        if self._on_token:
            self._on_token(piece, len(self._pieces) + len(self._thoughts))

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self._started


def _held_to_schema(request: GenerateRequest, text: str, finish_reason: str) -> tuple[str, bool]:
    """An answer that satisfies the request's schema, and whether it had to be completed for that.

    Raises:
        ConstraintError: it cannot be.
    """
    constraint = request.constraint
    if constraint is None or constraint.schema is None:
        return text, False
    text = text.strip()
    try:
        validate_json(text, constraint.schema)
        return text, False
    except ConstraintError:
        if finish_reason != "length":
            raise
    if constraint.on_truncation == "error":
        raise ConstraintError("the answer was cut off at max_tokens; raise it, or set on_truncation: complete")
    text = closed(constraint.grammar, on_one_line(text).encode()).decode()
    validate_json(text, constraint.schema)
    return text, True


def on_one_line(beginning: str) -> str:
    """The beginning of a JSON text as our grammars write it: `, ` and `: ` between its parts, no other white space."""
    parts: list[str] = []
    in_string = escaped = False
    for character in beginning:
        if in_string:
            parts.append(character)
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif not character.isspace():
            parts.append(f"{character} " if character in ",:" else character)
            in_string = character == '"'
    return "".join(parts)


def schema_of(request: GenerateRequest) -> dict[str, Any] | None:
    """The JSON schema that a provider is to be told."""
    if request.constraint is None or request.constraint.schema is None:
        return None
    schema = json.loads(request.constraint.schema)
    return schema if isinstance(schema, dict) else {} if schema else {"not": {}}
