"""A model in this machine's memory as a provider: the pool loads it, keeps it, and evicts it."""

from dataclasses import fields

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.pool_protocol import Pool
from llm_core.providers.protocol import ProviderCapabilities
from llm_core.worker import OnToken

LOCAL = ProviderCapabilities(
    parameters=frozenset(field.name for field in fields(SamplingParams)), response_schema=True, grammar=True
)


class LocalProvider:
    """One load of one model."""

    capabilities = LOCAL

    def __init__(self, pool: Pool, load: LoadParams, model: str) -> None:
        self._pool, self._load, self._model = pool, load, model

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """As `Pool.generate`."""
        return self._pool.generate(self._load, self._model, request, on_token)

    def close(self) -> None:
        """Nothing: the pool decides how long the model stays."""
