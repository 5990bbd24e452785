"""The remote models of one run: each with its connection, and no more calls at a time than it allows."""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from llm_core.errors import ConfigError, GenerationTimeout, GgufFlowError, ProviderError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.left_alone import wait_while
from llm_core.providers.protocol import FindKey, Provider
from llm_core.providers.registry import RemoteModel, max_concurrency, open_provider
from llm_core.worker import OnToken


class _Limited:
    """A provider that waits its turn, keeps to its time, and fails with our errors only, whoever has written it."""

    def __init__(self, name: str, inner: Provider, n_at_once: int) -> None:
        self.capabilities, self._name, self._inner = inner.capabilities, name, inner
        self._closed = False
        self._slots = threading.BoundedSemaphore(n_at_once)

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """As `Provider.generate`, no longer than the request's `timeout_s`, waiting for its turn not counted."""
        with self._slots:
            started, timeout_s = time.monotonic(), request.sampling.timeout_s

            def wanted() -> None:
                if self._closed:
                    raise GgufFlowError("the run has ended")
                if timeout_s is not None and time.monotonic() - started > timeout_s:
                    raise GenerationTimeout(f"the answer took longer than timeout_s ({timeout_s:g})")

            def token(text: str, n_tokens: int) -> None:
                wanted()
                if on_token:
                    on_token(text, n_tokens)

            try:
                return wait_while(wanted, lambda: self._inner.generate(request, token))
            except GgufFlowError as error:
                error.args = (f"model '{self._name}': {error}",)
                raise
            except Exception as error:
                line = " ".join(str(error).split())
                raise ProviderError(f"model '{self._name}': {type(error).__name__}: {line}") from error

    def close(self) -> None:
        self._closed = True
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
