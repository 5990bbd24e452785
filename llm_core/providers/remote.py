"""The remote models of one run: each with its connection, and no more calls at a time than it allows."""

import threading
from collections.abc import Iterable
from contextlib import suppress

from llm_core.errors import ConfigError, GgufFlowError, ProviderError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.providers.protocol import FindKey, Provider
from llm_core.providers.registry import RemoteModel, max_concurrency, open_provider
from llm_core.worker import OnToken


class _Limited:
    """A provider that waits its turn; what it fails with is one of our errors, whoever has written it."""

    def __init__(self, name: str, inner: Provider, n_at_once: int) -> None:
        self.capabilities, self._name, self._inner = inner.capabilities, name, inner
        self._slots = threading.BoundedSemaphore(n_at_once)

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        with self._slots:
            try:
                return self._inner.generate(request, on_token)
            except GgufFlowError as error:
                error.args = (f"model '{self._name}': {error}",)
                raise
            except Exception as error:
                line = " ".join(str(error).split())
                raise ProviderError(f"model '{self._name}': {type(error).__name__}: {line}") from error

    def close(self) -> None:
        self._inner.close()


class RemoteModels:
    """Opens what a run needs before it begins.

    Args:
        models: by the name that models.yaml gives them.

    Raises:
        ConfigError: a key or an SDK is missing; the message names the model.
    """

    def __init__(self, models: Iterable[tuple[str, RemoteModel]], find_key: FindKey) -> None:
        self._open: dict[RemoteModel, _Limited] = {}
        for name, remote in models:
            if remote in self._open:
                continue
            try:
                provider = open_provider(remote, find_key)
            except ConfigError as error:
                self.close()
                raise ConfigError(f"model '{name}': {error}") from None
            self._open[remote] = _Limited(name, provider, max_concurrency(remote))

    def of(self, remote: RemoteModel) -> Provider:
        return self._open[remote]

    def close(self) -> None:
        """End all that is under way."""
        for provider in self._open.values():
            with suppress(Exception):
                provider.close()
