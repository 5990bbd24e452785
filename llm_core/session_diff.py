"""Two sessions side by side: which parameters differ, and which words of each step's answer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core.session_files import load_session, load_steps
from llm_core.session_records import SessionRecord, StepRecord
from llm_core.snapshot import read_snapshot
from llm_core.word_diff import Piece, word_diff


@dataclass(frozen=True)
class Change:
    """Something that was set otherwise; `None`: not at all."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class StepDiff:
    """One place in the pipeline; a step that only one of the sessions has is `None` in the other."""

    before: str | None
    after: str | None
    pieces: tuple[Piece, ...]

    @property
    def is_same(self) -> bool:
        return None not in (self.before, self.after) and all(piece.kind == "same" for piece in self.pieces)


@dataclass(frozen=True)
class SessionDiff:
    before: SessionRecord
    after: SessionRecord
    changes: tuple[Change, ...]
    steps: tuple[StepDiff, ...]


def diff_sessions(folder: Path, before: str, after: str) -> SessionDiff:
    """Compare two sessions, of one pipeline or of two.

    Raises:
        SessionError: one of them cannot be read.
    """
    records = load_session(folder, before), load_session(folder, after)
    old, new = (_settings(record, read_snapshot(folder, record.id)) for record in records)
    keys = sorted(old.keys() | new.keys())
    changes = [Change(key, old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)]
    steps = (_by_place(load_steps(folder, record)) for record in records)
    return SessionDiff(*records, tuple(changes), tuple(_steps(*steps)))


def _steps(old: dict[Any, StepRecord], new: dict[Any, StepRecord]) -> Iterator[StepDiff]:
    """In the order of the second, and then what only the first has."""
    for place in dict.fromkeys((*new, *old)):
        a, b = old.get(place), new.get(place)
        pieces = word_diff(a.text if a else "", b.text if b else "")
        yield StepDiff(a.id if a else None, b.id if b else None, tuple(pieces))


def _by_place(steps: list[StepRecord]) -> dict[Any, StepRecord]:
    """By stage and place in it, so that a stage whose model was replaced is still the same place."""
    return {(step.stage, step.kind, step.position if step.kind == "answer" else 0): step for step in steps}


def _settings(record: SessionRecord, snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the answers, flat, by key path; stages by name."""
    pipeline = dict(snapshot.get("pipeline", {}))
    stages = {stage["id"]: stage for stage in pipeline.pop("stages", [])}
    models = {
        name: {"sha256": model.get("sha256"), "mmproj_sha256": _mmproj_sha256(model), **model.get("entry", {})}
        for name, model in snapshot.get("models", {}).items()
    }
    images = {
        name: ", ".join(f"{ref.source} ({ref.sha256[:12]}…)" for ref in refs) for name, refs in record.images.items()
    }
    shown = {"question": record.question, "images": images, "pipeline": pipeline, "stages": stages, "models": models}
    more = {name: snapshot.get(name, {}) for name in ("defaults", "versions", "machine")}
    return dict(_flat("", shown | more))


def _mmproj_sha256(model: Mapping[str, Any]) -> str | None:
    return (model.get("mmproj") or {}).get("sha256")


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(f"{path}[{number}]", inner)
    else:
        yield path, value
