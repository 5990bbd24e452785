"""Generation parameters as written in YAML, all optional; `call_params.py` has them as resolved for one call."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator

from llm_core.call_params import BAN, MAX_SEED
from llm_core.documents import Document


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
    logit_bias: dict[str, float] | None = Field(None, description="text → added to its tokens' logits; -100 bans")
    deterministic: bool | None = Field(None, description="decode alone; unset: at temperature 0")
    prompt_lookup: bool | None = Field(None, description="guess from the prompt; unset: unless deterministic")
    n_ctx: int | None = Field(None, ge=16, description="context length in tokens: prompt and answer together")
    n_gpu_layers: int | None = Field(None, ge=-1, description="layers on the GPU; -1: all; unset: as many as fit")
    kv_type: Literal["f16", "q8_0", "q4_0"] | None = Field(None, description="number format of the KV cache")
    flash_attention: bool | None = Field(None, description="unset: wherever llama.cpp can")
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

    @field_validator("logit_bias")
    @classmethod
    def _bias_in_bounds(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for text, bias in (value or {}).items():
            if not text or not BAN <= bias <= -BAN:
                raise ValueError(f"{text!r}: {bias:g}: expected a text, and a bias from {BAN:g} to {-BAN:g}")
        return value

    def over(self, fallback: "GenerationParams") -> Self:
        """These parameters, with `fallback`'s where these are not set."""
        own = self.model_dump(exclude_none=True)
        shared = {k: v for k, v in fallback.model_dump(exclude_none=True).items() if k in type(self).model_fields}
        return type(self).model_validate(shared | own)


class ModelParams(GenerationParams):
    """What models.yaml may set for one model, or for all of them under `defaults`."""

    threads: int | None = Field(None, ge=1, description="decoding threads; never more than physical cores are used")
