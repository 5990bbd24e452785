"""The sessions folder as a history: which runs, in which order, and which may go."""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llm_core.errors import InputError, SessionError
from llm_core.session_files import list_sessions, load_session, session_folder
from llm_core.session_records import SessionRecord, Status

_AGE = re.compile(r"([0-9]{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Wanted:
    """Which sessions to list; `None`: whatever it is."""

    pipeline: str | None = None
    status: Status | None = None
    since: datetime | None = None
    text: str | None = None
    """Stands in the question, whatever its case."""

    def has(self, session: SessionRecord) -> bool:
        return (
            self.pipeline in (None, session.pipeline)
            and self.status in (None, session.status)
            and (self.since is None or session.created >= self.since)
            and (self.text is None or self.text.casefold() in session.question.casefold())
        )


def parse_age(text: str) -> timedelta:
    """`90m`, `24h`, `30d` or `2w`.

    Raises:
        InputError: anything else.
    """
    match = _AGE.fullmatch(text)
    if not match:
        raise InputError(f"'{text}' is no age; write it like 90m, 24h, 30d or 2w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def as_tree(sessions: Iterable[SessionRecord]) -> Iterator[tuple[int, SessionRecord]]:
    """(depth, session): each followed by its reruns; one whose parent is not among them stands at depth 0."""
    found = {session.id: session for session in sessions}
    children: dict[str | None, list[SessionRecord]] = {}
    seen: set[str] = set()
    for session in found.values():
        # A parent that comes later is none: a folder that was copied or renamed must not make a circle.
        children.setdefault(session.parent if session.parent in seen else None, []).append(session)
        seen.add(session.id)
    waiting = [(0, session) for session in reversed(children.get(None, []))]
    while waiting:
        depth, session = waiting.pop()
        yield depth, session
        waiting += [(depth + 1, child) for child in reversed(children.get(session.id, []))]


def delete_session(folder: Path, session_id: str, *, force: bool = False) -> None:
    """Remove one session's folder, and nothing else.

    Raises:
        SessionError: there is no such session, it is a link to elsewhere, or it is still running.
    """
    path = session_folder(folder, session_id)
    try:
        running = load_session(folder, session_id).status == "running"
    except SessionError:
        if not force:
            raise
        running = False
    if path.is_symlink():
        raise SessionError(f"{path} is a link; remove it by hand")
    if running and not force:
        raise SessionError(f"{session_id} is running, or its process was killed; --force deletes it all the same")
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise SessionError(f"{error.filename or path} cannot be deleted: {error.strerror or error}") from None


def to_prune(folder: Path, older_than: timedelta, keep: int, now: datetime | None = None) -> list[SessionRecord]:
    """The finished sessions that began longer ago than `older_than`, but for links and the newest `keep` of all."""
    sessions = [session for session in list_sessions(folder) if isinstance(session, SessionRecord)]
    newest = {session.id for session in sorted(sessions, key=lambda s: s.created)[max(0, len(sessions) - keep) :]}
    before = (now or datetime.now(UTC)) - older_than
    done = (session for session in sessions if session.status not in ("running", "suspended"))
    old = (session for session in done if session.created < before and session.id not in newest)
    return [session for session in old if not (folder / session.id).is_symlink()]
