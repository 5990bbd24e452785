"""One answer on its way through the engine, and the events that tell of it."""

import os
import time
from dataclasses import dataclass, field

from llm_core.errors import GgufFlowError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.guide import Guide
from llm_core.machine import peak_rss_bytes, process_vram_bytes
from llm_core.prompt_lookup import PromptLookup
from llm_core.prompt_pieces import ImagePiece, Prompt
from llm_core.sampler import Sampler
from llm_core.text_stream import TextStream


@dataclass(frozen=True)
class Started:
    """A request has got its sequence; its `timeout_s` runs from here."""

    id: int


@dataclass(frozen=True)
class Token:
    """New text of an answer, and how many tokens it has by now."""

    id: int
    text: str
    completion_tokens: int


@dataclass(frozen=True)
class Finished:
    id: int
    result: GenerateResult


@dataclass(frozen=True)
class Failed:
    id: int
    error: GgufFlowError


Event = Started | Token | Finished | Failed


@dataclass(eq=False)
class Answer:
    """One request on its way; `sequence` is its place in the context once it has one."""

    id: int
    request: GenerateRequest
    prompt: Prompt
    seed: int
    arrived: float
    stream: TextStream
    guide: Guide | None = None
    """Where its tokens are held to a constraint."""
    sampler: Sampler | None = None
    started: float = 0.0
    sequence: int = -1
    n_cached: int = 0
    """Tokens of its prompt that were in its sequence when it came."""
    n_past: int = 0
    """Tokens of it in the KV cache, without those of a draft."""
    shift: int = 0
    """Where the next token stands, less the tokens before it."""
    completion: list[int] = field(default_factory=list)
    first_token: float = 0.0
    last_token: float = 0.0
    output_index: int = -1
    """Where in the batch the logits of its next token stand; -1 when it has none this step."""
    lookup: PromptLookup | None = None
    draft: list[int] = field(default_factory=list)
    """Guesses in the batch, after its last token."""
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def tokens(self) -> list[int]:
        """Of the prompt."""
        return self.prompt.tokens

    @property
    def image(self) -> ImagePiece | None:
        """The next that is to be put into the KV cache."""
        return self.prompt.images[0] if self.prompt.images else None

    def token_drawn(self) -> None:
        """Note the time."""
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token

    def guess(self, n_ctx: int) -> list[int]:
        """The tokens that may follow its last one, where it may guess; as many as it has room for."""
        if not (self.completion and self.request.sampling.looks_up):
            return []
        self.lookup = self.lookup or PromptLookup(self.tokens)
        left = self.request.sampling.max_tokens - len(self.completion) - 1
        draft = self.lookup.draft(self.completion, min(left, n_ctx - self.n_past))
        self.n_drafted += len(draft)
        return draft

    def accept_guess(self) -> None:
        """The next of its guesses came true: on to the token after it."""
        self.n_accepted += 1
        self.n_past += 1
        self.output_index += 1

    def learn(self, n_accepted: int) -> None:
        """So many of its last guesses came true."""
        assert self.lookup
        self.lookup.learn(len(self.draft), n_accepted)

    def finished(
        self, reason: str, text: str, reasoning: str | None, build: str, load_s: float, gpu: int | None
    ) -> Finished:
        """What came of it, with `gpu` the one that its model uses."""
        n = len(self.completion)
        decode_s = self.last_token - self.first_token
        result = GenerateResult(
            text=text,
            reasoning=reasoning,
            finish_reason=reason,
            build=build,
            prompt=self.prompt.text,
            prompt_tokens=len(self.tokens),
            cached_prompt_tokens=self.n_cached,
            completion_tokens=n,
            tokens=tuple(self.completion),
            seed=self.seed,
            peak_rss_bytes=peak_rss_bytes(),
            peak_vram_bytes=None if gpu is None else process_vram_bytes(os.getpid(), gpu),
            load_s=load_s,
            ttft_s=self.first_token - self.arrived,
            tpot_s=decode_s / (n - 1) if n > 1 else None,
            tokens_per_s=n / (self.last_token - self.started),
            truncated=bool(self.guide and self.guide.truncated),
            logprobs=tuple(self.guide.logprobs) if self.guide else (),
            drafted_tokens=self.n_drafted,
            accepted_tokens=self.n_accepted,
        )
        return Finished(self.id, result)
