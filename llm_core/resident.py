"""A model in memory, as the pool sees it and as people do."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from llm_core.call_params import LoadParams
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.machine import Bytes
from llm_core.worker import OnToken


class Worker(Protocol):
    """A loaded model: `ModelWorker`, or a scripted one in tests."""

    load_s: float
    model: str

    @property
    def alive(self) -> bool: ...
    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult: ...
    def use_threads(self, threads: int) -> None: ...
    def pause(self) -> None: ...
    def close(self) -> None: ...


StartWorker = Callable[[LoadParams, str], Worker]


@dataclass(frozen=True)
class ResidentStatus:
    """One resident model, for people."""

    model: str
    load: LoadParams
    state: str
    bytes: Bytes
    users: int
    pinned: bool
    idle_s: float | None
    """Since its last answer; `None` while it is in use."""


@dataclass(eq=False)
class Resident:
    load: LoadParams
    model: str
    bytes: Bytes
    worker: Worker | None = None
    error: BaseException | None = None
    users: int = 0
    pinned: bool = False
    leaving: bool = False
    answered: bool = False
    """Its load time has been told with its first answer."""
    last_used: float = field(default_factory=time.monotonic)

    @property
    def usable(self) -> bool:
        """Loading or alive, and not on its way out."""
        return not self.leaving and (self.worker is None or self.worker.alive)

    @property
    def state(self) -> str:
        return "leaving" if self.leaving else "ready" if self.worker else "loading"
