"""Sessions read back: which there are, their records and steps; what is damaged is told by its file."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from llm_core.documents import describe
from llm_core.errors import SessionError
from llm_core.session_records import FORMAT, SessionRecord, StepRecord, Versioned

_FOLDER_NAME = re.compile(r"session_([0-9]{1,9})")
RecordT = TypeVar("RecordT", bound=Versioned)


def is_session_name(name: str) -> bool:
    return _FOLDER_NAME.fullmatch(name) is not None


def session_number(name: str) -> int:
    """The number of `session_012`; -1 for anything else, so that no name leads out of the folder."""
    match = _FOLDER_NAME.fullmatch(name)
    return int(match[1]) if match else -1


def list_sessions(folder: Path) -> Iterator[SessionRecord | SessionError]:
    """Every session in `folder`, in order of number; a damaged one as the error that says so."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if is_session_name(entry.name) and entry.is_dir()]
    for name in sorted(names, key=session_number):
        try:
            yield _load(folder, name)
        except SessionError as error:
            yield error


def load_step(folder: Path, session: SessionRecord, step_id: str) -> StepRecord:
    """One finished step.

    Raises:
        SessionError: its file is damaged.
    """
    return _read(folder / session.id / session.files[step_id], StepRecord)


def session_folder(folder: Path, id: str) -> Path:
    """Where a session lies; no id leads out of `folder`.

    Raises:
        SessionError: there is no such session.
    """
    if not is_session_name(id) or not (folder / id).is_dir():
        raise SessionError(f"no session '{id}' in {folder}; `gguf-flow sessions` lists them")
    return folder / id


def load_session(folder: Path, id: str) -> SessionRecord:
    """Read `session.json` of one session.

    Raises:
        SessionError: there is no such session, or it is damaged.
    """
    session_folder(folder, id)
    return _load(folder, id)


def _load(folder: Path, id: str) -> SessionRecord:
    record = _read(folder / id / "session.json", SessionRecord)
    return record if record.id == id else record.model_copy(update={"id": id})  # a folder may have been renamed


def load_steps(folder: Path, session: SessionRecord) -> list[StepRecord]:
    """The finished steps of a session, by stage, members before their aggregation; none of a dataset run's logs."""
    names = [] if session.dataset else session.files.values()
    steps = [_read(folder / session.id / name, StepRecord) for name in names]
    return sorted(steps, key=lambda step: (step.number, step.position))


def load_final(folder: Path, session: SessionRecord) -> str | None:
    """The final answer, where the run came so far.

    Raises:
        SessionError: its file cannot be read.
    """
    path = folder / session.id / "final.txt"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SessionError(f"{path}: {error}") from None


def check_format(path: Path, content: bytes) -> None:
    """Refuse a session's file that a later version has written: what it says may mean something else by then.

    Raises:
        SessionError: it is of a later format, or it is damaged.
    """
    _checked(path, _parsed(path, content, Versioned))


def _read(path: Path, model: type[RecordT]) -> RecordT:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror or error}") from None
    try:
        return _checked(path, model.model_validate_json(content))
    except ValidationError:
        check_format(path, content)  # a later format may look damaged
        return _parsed(path, content, model)


def _checked(path: Path, record: RecordT) -> RecordT:
    if record.format > FORMAT:
        said = f"written by a newer gguf-flow (format {record.format}); this one reads up to {FORMAT}"
        raise SessionError(f"{path}: {said}")
    return record


def _parsed(path: Path, content: bytes, model: type[RecordT]) -> RecordT:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise SessionError(f"{path}: damaged: {describe(error)}") from None
