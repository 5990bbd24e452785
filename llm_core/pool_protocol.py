"""What a run asks of a pool of models, be it its own or the host's."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from llm_core.call_params import LoadParams
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.machine import Bytes
from llm_core.resident import ResidentStatus
from llm_core.worker import OnToken


class Pool(Protocol):
    """`ModelPool`, in this process, or `HostPool`, over HTTP."""

    budget: Bytes

    @property
    def load_count(self) -> int: ...
    def generate(
        self, load: LoadParams, model: str, request: GenerateRequest, on_token: OnToken | None = None
    ) -> GenerateResult: ...
    def hold(self, load: LoadParams) -> AbstractContextManager[None]: ...
    def prefetch(self, load: LoadParams, model: str) -> None: ...
    def expect(self, loads: Iterable[LoadParams]) -> None: ...
    def free_now(self) -> Bytes: ...
    def status(self) -> list[ResidentStatus]: ...
    def close(self) -> None: ...
