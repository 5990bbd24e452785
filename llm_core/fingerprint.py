"""SHA-256: of texts, and of model files, remembered by path, size and modification time."""

import hashlib
from contextlib import suppress
from pathlib import Path

from llm_core.atomic_write import write_whole


def text_sha256(text: str | None) -> str | None:
    """The SHA-256 in hex of a text such as a chat template, where there is one."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path, cache_dir: Path) -> str:
    """The file's SHA-256 in hex; hashing 8 GB takes seconds, so the digest is kept in `cache_dir`."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()
    remembered = cache_dir / "sha256" / key
    try:
        return remembered.read_text()
    except OSError:
        pass
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a cache that cannot be written costs time, not the run
        write_whole(remembered, digest)
    return digest
