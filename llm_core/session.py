"""One run on disk: `sessions/session_001/` with what was asked, what ran, every answer, and how it ended."""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_core.atomic_write import remove_leftovers, write_whole
from llm_core.errors import SessionError
from llm_core.images import Image
from llm_core.session_files import load_session, session_number
from llm_core.session_images import FOLDER, Images, keep_images, refs
from llm_core.session_records import Branch, DatasetRef, SessionRecord, Status, StepRecord


class Session:
    """A session being written. Every file is written whole, and each step as soon as it is there."""

    def __init__(self, path: Path, record: SessionRecord) -> None:
        self.path, self.record = path, record

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        pipeline: str,
        question: str,
        execution_mode: str,
        snapshot: dict[str, Any],
        flow_run_id: str | None = None,
        branch: Branch | None = None,
        dataset: DatasetRef | None = None,
        images: Images | None = None,
    ) -> "Session":
        """Take the next free number in `folder` (an exclusive mkdir, so two runs never share one).

        Args:
            branch: of a rerun; the steps that it carries over are there at once.

        Raises:
            SessionError: the folder cannot be written.
        """
        try:
            path = _next_folder(folder)
            record = SessionRecord(
                id=path.name,
                parent=branch and branch.parent,
                from_stage=branch and branch.from_stage,
                changed=branch.changed if branch else (),
                reused=tuple(branch.carried) if branch else (),
                files=dict(branch.carried) if branch else {},
                pipeline=pipeline,
                question=question,
                execution_mode=execution_mode,
                images={name: refs(seen) for name, seen in (images or {}).items()},
                dataset=dataset,
                flow_run_id=flow_run_id,
                created=datetime.now(UTC),
            )
            session = cls(path, record)
            write_whole(path / "config_snapshot.json", _json(snapshot))
            if branch:
                for name in branch.carried.values():
                    write_whole(path / name, (branch.folder / name).read_text(encoding="utf-8"))
            for seen in (images or {}).values():
                keep_images(path, seen)
            session._save()
        except OSError as error:
            raise _unwritable(folder, error) from None
        return session

    @classmethod
    def reopen(cls, folder: Path, id: str, *, flow_run_id: str | None = None) -> "Session":
        """Go on with a session that did not come to its end.

        Raises:
            SessionError: there is no such session, it or a file of it is a link, or it cannot be read or written.
        """
        session = cls(folder / id, load_session(folder, id))
        try:
            for path in (session.path, *session.path.iterdir()):
                if path.is_symlink():
                    raise SessionError(f"{path} is a link; nothing is written through it")
            remove_leftovers(session.path)
            remove_leftovers(session.path / FOLDER)
        except OSError as error:
            raise _unwritable(folder, error) from None
        session._update(status="running", ended=None, error=None, flow_run_id=flow_run_id)
        return session

    def add_log(self, step_id: str, file_name: str) -> Path:
        """Where a step of a dataset run appends its records."""
        self._update(files={**self.record.files, step_id: file_name})
        return self.path / file_name

    def add(self, step: StepRecord, file_name: str) -> None:
        """Save one finished step."""
        self._write(file_name, step.model_dump_json(indent=2))
        degraded = dict.fromkeys((*self.record.degraded, *step.degraded))
        reused = (*self.record.reused, step.id) if step.reused_from else self.record.reused
        files = {**self.record.files, step.id: file_name}
        self._update(files=files, degraded=tuple(degraded), reused=tuple(dict.fromkeys(reused)))

    def keep(self, images: Iterable[Image]) -> None:
        """Save images that an item of a dataset is asked with."""
        try:
            keep_images(self.path, images)
        except OSError as error:
            raise _unwritable(self.path, error) from None

    def complete(self, answer: str, tokens_per_s: float | None = None) -> None:
        self._write("final.txt", answer)
        self._update(status="completed", ended=datetime.now(UTC), tokens_per_s=tokens_per_s)

    def suspend(self) -> None:
        self._update(status="suspended")

    def fail(self, error: str, status: Status = "failed", tokens_per_s: float | None = None) -> None:
        self._update(status=status, ended=datetime.now(UTC), error=error, tokens_per_s=tokens_per_s)

    def _update(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes)
        self._save()

    def _save(self) -> None:
        self._write("session.json", self.record.model_dump_json(indent=2))

    def _write(self, file_name: str, text: str) -> None:
        try:
            write_whole(self.path / file_name, text + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from None


def check_writable(folder: Path) -> None:
    """Find out before a run, not after its first answer, that nothing can be saved.

    Raises:
        SessionError: the sessions folder cannot be made or written.
    """
    probe = folder / ".writable"
    try:
        write_whole(probe, "")
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None


def step_files(number: int, members: list[str], aggregated: bool) -> dict[str | None, str]:
    """File name by member of a stage, and of its aggregation under `None`; names that come out alike get a number."""
    if not aggregated:
        return {members[0]: f"step{number}.json"}
    names: dict[str | None, str] = {None: f"step{number}_aggregation.json"}
    reserved = approval_file(number)
    for member in members:
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", member)[:80].strip("._") or "model"
        name, again = f"step{number}_{safe}.json", 1
        while name.lower() in {
            taken.lower() for taken in (*names.values(), reserved)
        }:  # some file systems know no case
            again += 1
            name = f"step{number}_{safe}_{again}.json"
        names[member] = name
    return names


def approval_file(number: int) -> str:
    return f"step{number}_approval.json"


def _next_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    number = max((session_number(path.name) for path in folder.glob("session_*")), default=0)
    while True:
        number = max(number, 0) + 1
        path = folder / f"session_{number:03d}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue


def _unwritable(folder: Path, error: OSError) -> SessionError:
    reason = error.strerror or error
    return SessionError(f"sessions folder {folder} cannot be written: {reason}; set GGUF_FLOW_SESSIONS_DIR")


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, default=str) + "\n"
