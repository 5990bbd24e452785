"""What a pipeline's flow returns, or raises."""

from pathlib import Path

from pydantic import BaseModel

from llm_core.errors import GgufFlowError
from llm_core.session_records import StepRecord


class PipelineResult(BaseModel):
    """The answer of a run, and where everything else stands."""

    session_id: str
    session_path: Path
    pipeline: str
    status: str
    answer: str
    steps: list[StepRecord]
    degraded: tuple[str, ...] = ()
    """What was given up on the way: for want of memory, or because members gave no answer."""


class PipelineFailed(GgufFlowError):
    """A run that failed; every step that had finished is in its session.

    Attributes:
        session_path: the session's folder.
        cause: the error of the step that failed first.
    """

    def __init__(self, message: str, session_path: Path, cause: BaseException | None) -> None:
        super().__init__(message)
        self.session_path, self.cause = session_path, cause
