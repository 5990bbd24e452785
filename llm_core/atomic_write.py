"""Files that are there whole or not at all."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Write so that a reader, or a crash, sees the whole file or none of it: temporary file, fsync, rename.

    Args:
        durable: without it there is no fsync; the file may be empty after a loss of power.
    """
    _replace(path, (text.encode(),), durable)


def replace_whole(path: Path, pieces: Iterable[str]) -> None:
    """As `write_whole`, for what is made piece by piece."""
    _replace(path, (piece.encode() for piece in pieces))


def write_bytes_whole(path: Path, data: bytes) -> None:
    """As `write_whole`, for what is no text."""
    _replace(path, (data,))


def _replace(path: Path, pieces: Iterable[bytes], durable: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a process was writing to `folder` when it was killed."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
