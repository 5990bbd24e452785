"""What the tasks of one flow run share."""

from contextvars import ContextVar
from typing import Protocol

from llm_core.plan import Plan
from llm_core.pool import ModelPool
from llm_core.session import Session, StepRecord


class Progress(Protocol):
    """Told what goes on in a run; called from several threads."""

    def begin(self, step: str, model: str) -> None: ...
    def token(self, step: str, n_tokens: int) -> None: ...
    def end(self, step: str, record: StepRecord) -> None: ...


class Silent:
    """No one is looking."""

    def begin(self, step: str, model: str) -> None: ...
    def token(self, step: str, n_tokens: int) -> None: ...
    def end(self, step: str, record: StepRecord) -> None: ...


progress: ContextVar[Progress] = ContextVar("progress", default=Silent())  # noqa: B039  it holds no state
"""Set by whoever starts a flow in this process and wants to watch it."""


class Run:
    """Plan, question, models and session of one flow run.

    Not a dataclass: Prefect walks into those when it looks for futures among a task's parameters.
    """

    def __init__(self, plan: Plan, question: str, pool: ModelPool, session: Session) -> None:
        self.plan, self.question, self.pool, self.session = plan, question, pool, session
