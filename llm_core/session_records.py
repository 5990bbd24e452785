"""What a session's files hold: one record per run, one per step."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from llm_core.session_images import ImageRef

FORMAT = 1
TokenIds = Annotated[
    tuple[int, ...],
    BeforeValidator(lambda ids: ids.split() if isinstance(ids, str) else ids),
    PlainSerializer(lambda ids: " ".join(map(str, ids)), when_used="json"),
]
"""On one line of the file, for people's sake."""
Logprobs = Annotated[
    tuple[tuple[int, float], ...],
    BeforeValidator(lambda all: [pair.split(":") for pair in all.split()] if isinstance(all, str) else all),
    PlainSerializer(lambda all: " ".join(f"{end}:{logprob:.4f}" for end, logprob in all), when_used="json"),
]
"""(byte where a token ends, its log probability); likewise on one line."""
Status = Literal["running", "suspended", "completed", "failed", "cancelled"]
"""`suspended`: waits for a person, without a process."""


_PLAIN_NAME = re.compile(r"(?!\.{1,2}\Z)[^/\\\0]+")


def _plain(name: str) -> str:
    if not _PLAIN_NAME.fullmatch(name) or len(name.encode()) > 255:
        raise ValueError(f"{name[:60]!r} is no plain file name")
    return name


FileName = Annotated[str, AfterValidator(_plain)]
"""Of a file in the session's own folder; a path that leads elsewhere is refused."""


class Versioned(BaseModel):
    """What the files of a session have in common; one without a format is of the first."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT


class StepRecord(Versioned):
    """One answer: of a model, or of an aggregation. Saved as `step3_<model>.json`; durations in seconds."""

    id: str
    """Unique in its session: `3 panel: mistral`."""
    number: int
    """Position of the stage in the order of execution, from 1."""
    position: int = 0
    """Place of the member in its stage; an aggregation comes after all of them, and an approval last."""
    stage: str
    kind: Literal["answer", "aggregation", "approval"] = "answer"
    member: str | None = None
    model: str | None = None
    """The model that answered, by its name in models.yaml; `None` for an aggregation that needs none."""
    answered_by: str | None = None
    """What a remote provider calls it."""
    text: str
    parsed: Any = None
    """The value of an answer that has a `response_schema`, validated."""
    truncated: bool = False
    """Whether the answer was cut off, and got an end that its schema or grammar allows."""
    output: str | None = None
    """What later stages read, by the stage's `output_mode`; `None` for one member of several."""
    reasoning: str | None = None
    finish_reason: str | None = None
    system_prompt: str | None = None
    build: str | None = None
    """Of llama.cpp."""
    prompt: str | None = None
    images: tuple[ImageRef, ...] = ()
    """That the model saw, in order."""
    parameters: dict[str, Any] = {}
    seed: int | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tokens: TokenIds | None = None
    """Of the completion; what a replay is compared with."""
    drafted_tokens: int | None = None
    """Guessed by `prompt_lookup`."""
    accepted_tokens: int | None = None
    """Of these, so many came true."""
    logprobs: Logprobs = ()
    """Of an answer whose fields are voted on."""
    load_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    tokens_per_s: float | None = None
    peak_rss_bytes: int | None = None
    peak_vram_bytes: int | None = None
    degraded: tuple[str, ...] = ()
    """What had to be given up: for want of memory, or because members gave no answer."""
    cache_key: str | None = None
    """Of an answer that an identical call may take over."""
    reused_from: str | None = None
    """The session whose answer this is, where `cache` spared the model the work."""
    started: datetime
    ended: datetime
    aggregation: dict[str, Any] | None = None
    """Kind, candidates, and evidence such as the counts of a vote."""
    edited: bool | None = None
    """Of an approval: whether the person changed the answer."""


class DatasetRef(BaseModel):
    """The dataset that a session went through, instead of one question."""

    model_config = ConfigDict(frozen=True)

    path: Path
    sha256: str
    n_items: int
    output: Path | None = None
    """Where the results go; `None`: into the session."""


@dataclass(frozen=True)
class Branch:
    """Where a child session leaves its parent."""

    parent: str
    parent_flow_run_id: str | None
    from_stage: str
    changed: tuple[str, ...]
    """As given: `draft.temperature=0.2`."""
    folder: Path
    """The parent's."""
    carried: Mapping[str, str]
    """File name by step id, of the steps that the child takes over byte for byte."""


class SessionRecord(Versioned):
    """`session.json`: who asked what, and how it ended."""

    id: str
    parent: str | None = None
    from_stage: str | None = None
    """The first stage that was run again; the others are the parent's."""
    changed: tuple[str, ...] = ()
    """What differs from the parent, as it was given."""
    reused: tuple[str, ...] = ()
    """Steps that no model was asked for: the parent's, whose files are its own byte for byte, and those that `cache`
    took from other sessions."""
    status: Status = "running"
    pipeline: str
    question: str
    execution_mode: str
    images: dict[str, tuple[ImageRef, ...]] = Field(default_factory=dict)
    """By what a stage's `images` says; the bytes lie in the folder `images`."""
    dataset: DatasetRef | None = None
    flow_run_id: str | None = None
    created: datetime
    ended: datetime | None = None
    error: str | None = None
    tokens_per_s: float | None = None
    """Of all its models together, while at least one was at work."""
    degraded: tuple[str, ...] = ()
    """What any step had to give up."""
    files: dict[str, FileName] = Field(default_factory=dict)
    """File name of each finished step, by step id, in order."""

    @property
    def came_from(self) -> str:
        """Of a rerun: where it left its parent, and what is different."""
        return ", ".join((f"from {self.from_stage}", *self.changed))
