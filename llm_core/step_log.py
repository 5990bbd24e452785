"""What one step made of every item of a dataset: JSON lines, appended as they come, read back by item."""

import json
import os
import threading
from pathlib import Path

from llm_core.errors import SessionError
from llm_core.session_records import StepRecord


class ItemStep(StepRecord):
    """The record of one item; with an `error` there is no text."""

    item: int
    error: str | None = None


class StepLog:
    """A file of `ItemStep`s, kept open. What stands in it survives the death of the process.

    Raises:
        SessionError: a line is damaged. The last one may be half written; it is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_failed = 0
        self._lines: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._file = path.open("a+b")
        self._size = self._scan()

    def __contains__(self, item: int) -> bool:
        return item in self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, record: ItemStep) -> tuple[int, int]:
        """Append a record; it is with the system when this returns, at this offset and of this length."""
        line = record.model_dump_json(exclude_none=True).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            self._remember(record.item, record.error, line)
            return self._lines[record.item]

    def get(self, item: int) -> ItemStep | None:
        """The record of an item, or `None` if there is none yet."""
        if item not in self._lines:
            return None
        offset, length = self._lines[item]
        return ItemStep.model_validate_json(os.pread(self._file.fileno(), length, offset))

    def close(self) -> None:
        """Everything on disk, even if the power fails."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _scan(self) -> int:
        self._size = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(self._size)
                break
            try:
                data = json.loads(line)
                self._remember(data["item"], data.get("error"), line)
            except (ValueError, KeyError, TypeError):
                raise SessionError(f"{self.path}: line {number} is damaged") from None
        return self._size

    def _remember(self, item: int, error: str | None, line: bytes) -> None:
        self._lines[item] = self._size, len(line)
        self._size += len(line)
        self.n_failed += error is not None
