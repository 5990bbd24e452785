"""What every provider can be asked, and what it says of itself before it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.worker import OnToken

FindKey = Callable[[str], str | None]
"""Looks up a secret, or a setting, by the name of its environment variable; `None`: it is not set."""


@dataclass(frozen=True)
class ProviderCapabilities:
    """What a model can be asked for; anything else is refused when a pipeline is planned."""

    parameters: frozenset[str]
    """Of `SamplingParams`. `max_tokens` and `timeout_s` are everybody's."""
    response_schema: bool = False
    """It is told the schema; what it answers is checked in any case."""
    grammar: bool = False
    images: bool = False


class Provider(Protocol):
    """One model; may be asked from several threads.

    `generate` raises `ProviderUnavailable` where a retry may succeed, and another `GgufFlowError` where it will not.
    """

    capabilities: ProviderCapabilities

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult: ...
    def close(self) -> None: ...
