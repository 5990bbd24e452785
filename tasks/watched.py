"""One answer being watched: in the terminal that started the run, and as a progress artifact that the UI draws."""

import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from llm_core.plan import Call, StagePlan
from llm_core.session_records import StepRecord
from tasks.record import artifact_key
from tasks.run import Run, progress

SHOWN_AFTER_S = 2.0
"""A shorter answer is there before anybody looks at its progress."""
EVERY_S = 1.0
"""Between two updates of the artifact; one costs about 11 ms."""


class Watched:
    """Told of every token of one answer, and of the answer; the bar is full at `max_tokens`, or when it has ended."""

    def __init__(self, run: Run, stage: StagePlan, call: Call, step: str) -> None:
        self._watcher, self._step, self._max_tokens = progress.get(), step, call.sampling.max_tokens
        self._key = artifact_key(run.plan.pipeline, *step.split(": "), "progress")
        self._artifact: UUID | None = None
        self._last = time.monotonic() + SHOWN_AFTER_S - EVERY_S
        self._watcher.begin(step, call.model)

    def token(self, text: str, n_tokens: int) -> None:
        self._watcher.token(self._step, n_tokens)
        now = time.monotonic()
        if now - self._last >= EVERY_S:
            self._last = now
            percent = min(100.0, 100.0 * n_tokens / self._max_tokens)
            self._show(percent, f"{self._step}: {n_tokens} of at most {self._max_tokens} tokens")

    def end(self, answer: StepRecord) -> None:
        for note in answer.degraded:
            self._watcher.say(note)
        if self._artifact:
            counted = "" if answer.completion_tokens is None else f": {answer.completion_tokens} tokens"
            self._show(100.0, f"{self._step}{counted}")
        self._watcher.end(self._step, answer)

    def _show(self, percent: float, said: str) -> None:
        if self._artifact is None:
            made = create_progress_artifact(percent, key=self._key, description=said)
            assert isinstance(made, UUID)
            self._artifact = made
        else:
            update_progress_artifact(self._artifact, percent, description=said)
