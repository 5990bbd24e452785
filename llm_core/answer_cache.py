"""Answers of earlier sessions, found again by all that decides them."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_core.atomic_write import write_whole
from llm_core.call_params import LoadParams
from llm_core.errors import GgufFlowError
from llm_core.fingerprint import sha256
from llm_core.generation import GenerateRequest
from llm_core.gguf_file import read_gguf
from llm_core.machine import cpu_name
from llm_core.memory import llama_cpp_version
from llm_core.providers.registry import RemoteModel
from llm_core.session_files import is_session_name
from llm_core.session_records import StepRecord

FOLDER = ".answers"
_PLACED = ("n_ctx", "n_gpu_layers", "kv_type", "flash_attention")


class _Entry(BaseModel):
    """Where an answer stands: a file of a session, or a line of one."""

    session: str
    file: str
    offset: int = 0
    length: int | None = None


class AnswerCache:
    """Entries by key, beside the sessions. The answers stay in their sessions alone, and go with them: an entry whose
    answer is not there any more is dropped when it is come upon.

    Args:
        sessions: the sessions folder.
        cache: where SHA-256 of model files are remembered.
    """

    def __init__(self, sessions: Path, cache: Path) -> None:
        self._sessions, self._cache = sessions, cache

    def key(self, model: LoadParams | RemoteModel | None, request: GenerateRequest) -> str | None:
        """A SHA-256 over model file, llama.cpp build, CPU, prompt and parameters, or over what a remote provider is
        told; `None` for an answer that is drawn anew each time, or whose model cannot be read.
        """
        if isinstance(model, RemoteModel):
            return _digest({"remote": asdict(model), **_asked(request), "sampling": _told(request)})
        if model is None:
            return None
        return self._local_key(model, request)

    def _local_key(self, load: LoadParams, request: GenerateRequest) -> str | None:
        sampling = asdict(request.sampling)
        if sampling["temperature"] == 0:
            sampling["seed"] = 0
        if sampling["seed"] is None:
            return None
        path = Path(load.path)
        try:
            template, digest = read_gguf(path).chat_template or "", sha256(path, self._cache)
            seen = self._seen(load, request)
        except (GgufFlowError, OSError):
            return None
        decides = {
            "model": digest,
            "build": [llama_cpp_version(), cpu_name()],
            "load": {name: getattr(load, name) for name in _PLACED} | {"gpu": load.gpu is not None},
            **_asked(request),
            "sampling": {name: value for name, value in sampling.items() if name != "timeout_s"},
            # Of answers decoded alone: attention over long contexts is summed in as many parts.
            "threads": request.threads if request.sampling.alone else None,
            **seen,
            "today": date.today().isoformat() if "strftime_now" in template else None,
        }
        return _digest(decides)

    def _seen(self, load: LoadParams, request: GenerateRequest) -> dict[str, Any]:
        """With what a model looks; nothing of a request without images."""
        if not request.images or not load.mmproj:
            return {}
        return {"mmproj": sha256(Path(load.mmproj), self._cache)}

    def find(self, key: str) -> tuple[str, StepRecord] | None:
        """The session of the latest answer with this key, and the answer."""
        path = self._path(key)
        try:
            entry = _Entry.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            return self._drop(path)
        answer = self._read(entry)
        return (entry.session, answer) if answer and answer.cache_key == key else self._drop(path)

    def keep(self, key: str, file: Path, lines: tuple[int, int] | None = None) -> None:
        """Remember where the answer with this key stands.

        Args:
            file: of a session.
            lines: offset and length in it; `None`: all of it.
        """
        offset, length = lines or (0, None)
        entry = _Entry(session=file.parent.name, file=file.name, offset=offset, length=length)
        with suppress(OSError):  # a cache that cannot be written costs time, not the run
            write_whole(self._path(key), entry.model_dump_json(), durable=False)

    def _path(self, key: str) -> Path:
        return self._sessions / FOLDER / key[:2] / f"{key}.json"

    def _read(self, entry: _Entry) -> StepRecord | None:
        if not is_session_name(entry.session) or Path(entry.file).name != entry.file:
            return None
        try:
            with (self._sessions / entry.session / entry.file).open("rb") as file:
                size = os.fstat(file.fileno()).st_size if entry.length is None else entry.length
                return StepRecord.model_validate_json(os.pread(file.fileno(), size, entry.offset))
        except (OSError, ValidationError):
            return None

    @staticmethod
    def _drop(path: Path) -> None:
        with suppress(OSError):
            path.unlink()


def _asked(request: GenerateRequest) -> dict[str, Any]:
    return {
        "messages": request.messages,
        "strip_reasoning": request.strip_reasoning,
        "constraint": asdict(request.constraint) if request.constraint else None,
        **({"images": [image.sha256 for image in request.images]} if request.images else {}),
    }


def _told(request: GenerateRequest) -> dict[str, Any]:
    return {name: getattr(request.sampling, name) for name in ("max_tokens", *request.chosen)}


def _digest(decides: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
