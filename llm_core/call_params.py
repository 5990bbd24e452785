"""Parameters of one call, resolved. Plain dataclasses: the model's process reads them, and starts without pydantic."""

from dataclasses import dataclass, replace
from typing import Literal

BAN = -100.0
"""The bias that forbids a token, as in OpenAI's `logit_bias`."""
MAX_SEED = 2**32 - 2
"""llama.cpp's seeds are 32 bits wide, and 2^32-1 means 'draw one' (LLAMA_DEFAULT_SEED in llama.h)."""


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is drawn. Defaults are llama.cpp's own (common/common.h, `common_params_sampling`)."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    """`None` draws one, which the answer then records."""
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[str, float], ...] = ()
    """(text, bias): added to the logits of the text's tokens; `BAN` forbids them. Special tokens have a text too."""
    timeout_s: float | None = None
    """Of the generation itself, waiting for a free sequence not counted."""
    deterministic: bool | None = None
    """Decode alone, so that no neighbour changes a token; `None`: at temperature 0."""
    prompt_lookup: bool | None = None
    """Guess tokens from the prompt and check several at once; `None`: unless `alone`, since llama.cpp's attention
    rounds otherwise for several tokens than for one."""

    @property
    def alone(self) -> bool:
        return self.temperature == 0 if self.deterministic is None else self.deterministic

    @property
    def looks_up(self) -> bool:
        return not self.alone if self.prompt_lookup is None else self.prompt_lookup


@dataclass(frozen=True)
class Constraint:
    """What an answer is held to, token by token."""

    grammar: str
    """For llguidance, as JSON."""
    schema: str | None = None
    """The JSON schema it was made of; `None`: a grammar of the user's own."""
    think: bool = False
    """Free text first, until `</think>` or the model's own end; the grammar holds from there."""
    on_truncation: Literal["complete", "error"] = "complete"
    """What becomes of an answer that is cut off."""
    logprobs: bool = False
    """Whether the result is to tell how probable its tokens were to the model."""


@dataclass(frozen=True)
class LoadParams:
    """How one file is loaded; calls that agree in all of it share one loaded model."""

    path: str
    n_ctx: int
    n_gpu_layers: int = 0
    """Layers on the GPU; -1: all of them."""
    sequences: int = 1
    """Answers decoded at the same time, each with `n_ctx` tokens of its own."""
    kv_type: str = "f16"
    gpu: int | None = None
    """The one GPU this model may use; `None`: CPU only."""
    flash_attention: bool | None = None
    """`None`: wherever llama.cpp can. Other tokens may come with it than without."""
    mmproj: str | None = None
    """The file of the projector with which it sees images."""

    @property
    def context_cells(self) -> int:
        """Tokens in the KV cache: llama.cpp rounds each sequence's share up to 256."""
        return -(-self.n_ctx // 256) * 256 * self.sequences

    def is_like(self, other: "LoadParams") -> bool:
        """Whether the two differ at most in how many answers they decode at once."""
        return replace(self, sequences=1) == replace(other, sequences=1)
