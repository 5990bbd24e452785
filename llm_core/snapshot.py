"""`config_snapshot.json` read again: the pipeline and the models of an earlier run, as they were."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from llm_core.documents import describe
from llm_core.errors import ModelFileError, SessionError
from llm_core.fingerprint import sha256
from llm_core.gguf_file import GgufFile, read_gguf
from llm_core.parameters import ModelParams
from llm_core.pipeline import PipelineSpec
from llm_core.providers.registry import remote_model
from llm_core.registry import LocalModel, ModelEntry, ModelRegistry, RegisteredRemote
from llm_core.session_files import check_format, session_folder


class _SavedFile(BaseModel):
    file: Path
    size_bytes: int
    sha256: str


class _SavedModel(BaseModel):
    """Of a local model, what `_SavedFile` says of its file, too."""

    file: Path | None = None
    size_bytes: int = 0
    mmproj: _SavedFile | None = None
    entry: ModelEntry


class _SavedMachine(BaseModel):
    cpu: str | None = None


class _SavedSnapshot(BaseModel):
    pipeline: PipelineSpec
    defaults: ModelParams = ModelParams()
    models: dict[str, _SavedModel]
    machine: _SavedMachine = _SavedMachine()


@dataclass(frozen=True)
class Snapshot:
    """What an earlier run was made of."""

    path: Path
    spec: PipelineSpec
    registry: ModelRegistry
    """Entries and defaults as they were. A model whose file is gone is still there: steps that are kept name it."""
    gone: dict[str, str]
    """Models whose file cannot be read now, and why."""
    models: dict[str, Any]
    """What is written of each model."""
    cpu: str | None = None
    """That it ran on; `None` in sessions of before it was noted."""

    def problem(self, name: str, cache: Path) -> str | None:
        """Why a model cannot run as it did: its file is gone, or is another one by now."""
        if name in self.registry.remote:
            return None
        model = self.registry.available[name]
        if name in self.gone:
            return f"model '{name}' is gone ({self.gone[name]})"
        if sha256(model.path, cache) != self.models[name]["sha256"]:
            return f"model '{name}' has changed ({model.path})"
        if model.mmproj and sha256(model.mmproj.path, cache) != self.models[name]["mmproj"]["sha256"]:
            return f"the mmproj of model '{name}' has changed ({model.mmproj.path})"
        return None

    def check_models(self, names: set[str], cache: Path) -> None:
        """Refuse where a model that is to run again is gone or is another file by now.

        Raises:
            SessionError: names each of them.
        """
        problems = [problem for name in sorted(names & set(self.models)) if (problem := self.problem(name, cache))]
        if problems:
            raise SessionError(f"since {self.path.parent.name}: {'; '.join(problems)}; choose another with --model")


def load_snapshot(folder: Path, session_id: str) -> Snapshot:
    """The snapshot of a session.

    Raises:
        SessionError: there is no such session, or it cannot be read.
    """
    path, written = _file(folder, session_id), read_snapshot(folder, session_id)
    try:
        saved = _SavedSnapshot.model_validate(written)
    except ValidationError as error:
        raise SessionError(f"{path}: damaged: {describe(error)}") from None
    registry = ModelRegistry(path, path.parent, saved.defaults)
    gone: dict[str, str] = {}
    for name, model in saved.models.items():
        if model.file is None:
            registry.remote[name] = _remote(path, name, model.entry)
            continue
        files: list[GgufFile] = []
        for file, size_bytes in _files_of(model):
            try:
                files.append(read_gguf(file))
            except ModelFileError as error:
                files.append(GgufFile(file, size_bytes, {}, ()))
                gone.setdefault(name, str(error))
        registry.available[name] = LocalModel(name, model.entry, *files)
    return Snapshot(path, saved.pipeline, registry, gone, written["models"], saved.machine.cpu)


def _files_of(model: _SavedModel) -> list[tuple[Path, int]]:
    """Path and size of a local model's file, and of its projector."""
    assert model.file
    projector = [(model.mmproj.file, model.mmproj.size_bytes)] if model.mmproj else []
    return [(model.file, model.size_bytes), *projector]


def _remote(path: Path, name: str, entry: ModelEntry) -> RegisteredRemote:
    try:
        return RegisteredRemote(name, entry, remote_model(name, entry.provider or {}))
    except ValueError as error:
        raise SessionError(f"{path}: models.{name}: {error}") from None


def read_snapshot(folder: Path, session_id: str) -> dict[str, Any]:
    """The snapshot of a session as it stands in its file.

    Raises:
        SessionError: there is no such session, or it cannot be read.
    """
    path = _file(folder, session_id)
    try:
        content = path.read_bytes()
        written = json.loads(content)
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise SessionError(f"{path}: damaged: {error}") from None
    if not isinstance(written, dict):
        raise SessionError(f"{path}: damaged: not a JSON object")
    check_format(path, content)
    return written


def as_saved(snapshot: Any) -> Any:
    """A snapshot, or a part of it, as it is when it was written and read again."""
    return json.loads(json.dumps(snapshot, default=str))


def file_digests(model: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """SHA-256 of a model's file and of its projector, of what a snapshot says of the model."""
    return model.get("sha256"), (model.get("mmproj") or {}).get("sha256")


def _file(folder: Path, session_id: str) -> Path:
    return session_folder(folder, session_id) / "config_snapshot.json"
