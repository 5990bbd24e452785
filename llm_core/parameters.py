"""Generation and load parameters: as written in YAML (all optional), and as resolved for one call."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from llm_core.documents import Document

MAX_SEED = 2**32 - 2
"""llama.cpp's seeds are 32 bits wide, and 2^32-1 means 'draw one' (LLAMA_DEFAULT_SEED in llama.h)."""


class GenerationParams(Document):
    """Parameters that a stage, a member, a model or the registry's defaults may set; `None` is not set."""

    temperature: float | None = Field(None, ge=0, le=5, description="0 always takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, description="nucleus: smallest set of tokens with this probability")
    top_k: int | None = Field(None, ge=0, description="only the k likeliest tokens; 0 is no limit")
    min_p: float | None = Field(None, ge=0, le=1, description="drop tokens under this share of the likeliest one")
    repeat_penalty: float | None = Field(None, gt=0, le=10, description="divides logits of recent tokens; 1 is none")
    max_tokens: int | None = Field(None, ge=1, description="most tokens in one answer")
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="of the sampler; -1 or unset draws one per call")
    stop: tuple[str, ...] | None = Field(None, description="text that ends an answer; not part of it")
    n_ctx: int | None = Field(None, ge=16, description="context length in tokens: prompt and answer together")
    n_gpu_layers: int | None = Field(None, ge=-1, description="layers on the GPU; -1: all; unset: as many as fit")
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = Field(None, description="number format of the KV cache")
    timeout_s: float | None = Field(None, gt=0, description="a generation that takes longer is ended")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_string(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value and "" in value:
            raise ValueError("an empty stop string would end every answer at once")
        return value

    def over(self, fallback: "GenerationParams") -> Self:
        """These parameters, with `fallback`'s where these are not set."""
        own = self.model_dump(exclude_none=True)
        shared = {k: v for k, v in fallback.model_dump(exclude_none=True).items() if k in type(self).model_fields}
        return type(self).model_validate(shared | own)


class ModelParams(GenerationParams):
    """What models.yaml may set for one model, or for all of them under `defaults`."""

    threads: int | None = Field(None, ge=1, description="decoding threads; never more than physical cores are used")


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
    timeout_s: float | None = None


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

    @property
    def context_cells(self) -> int:
        """Tokens in the KV cache: llama.cpp rounds each sequence's share up to 256."""
        return -(-self.n_ctx // 256) * 256 * self.sequences
