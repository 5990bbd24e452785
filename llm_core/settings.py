"""Where things are: folders from the environment, `.env`, or the current folder."""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llm_core.image_sources import ImageSources
from llm_core.machine import Limits


def _either(name: str) -> AliasChoices:
    """`GGUF_FLOW_NAME` or plain `NAME`."""
    return AliasChoices(f"GGUF_FLOW_{name}", name)


class Settings(BaseSettings):
    """Settings read from `GGUF_FLOW_*` variables and `.env`; the defaults are folders of the current directory."""

    model_config = SettingsConfigDict(env_prefix="GGUF_FLOW_", env_file=".env", extra="ignore", frozen=True)

    config_dir: Path = Path("config")
    models_dir: Path | None = None
    """Overrides `models_directory` of models.yaml; a removable disk may hold it."""
    sessions_dir: Path | None = None
    cache_dir: Path = Path("~/.cache/gguf-flow")
    """File hashes and memory estimates; safe to delete."""

    gpu_index: Annotated[int | None, Field(ge=0, validation_alias=_either("GPU_INDEX"))] = None
    """The one GPU to use; all of them if unset."""
    max_vram_usage_percent: Annotated[
        float, Field(gt=0, le=100, validation_alias=_either("MAX_VRAM_USAGE_PERCENT"))
    ] = 95
    vram_reserve_mb: Annotated[int, Field(ge=0, validation_alias=_either("VRAM_RESERVE_MB"))] = 512
    max_ram_usage_percent: Annotated[float, Field(gt=0, le=100, validation_alias=_either("MAX_RAM_USAGE_PERCENT"))] = 90
    ram_reserve_mb: Annotated[int, Field(ge=0, validation_alias=_either("RAM_RESERVE_MB"))] = 512
    host_url: str | None = None
    """Of a model host to use; unset: the one that runs on this machine, if any does."""
    host_bind: str = "127.0.0.1"
    host_port: Annotated[int, Field(ge=0, le=65535)] = 8642
    batch_sequences: Annotated[int, Field(ge=1, le=256)] = 16
    """Most answers of one model that a dataset run decodes at once, where memory allows."""
    idle_ttl_s: float | None = Field(600, gt=0)
    """How long a model of a persistent pipeline stays loaded without being asked."""
    image_folders: Annotated[tuple[Path, ...], NoDecode] = ()
    """Beside the project's own, folders that images may be read from; written like `PATH`, with colons."""
    image_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Hosts that images may be fetched from, with commas between them."""

    @field_validator("image_folders", mode="before")
    @classmethod
    def _like_path(cls, value: Any) -> Any:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("image_hosts", mode="before")
    @classmethod
    def _by_commas(cls, value: Any) -> Any:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @property
    def limits(self) -> Limits:
        """What of the machine models may use."""
        return Limits(
            self.gpu_index,
            self.max_vram_usage_percent,
            self.vram_reserve_mb * 2**20,
            self.max_ram_usage_percent,
            self.ram_reserve_mb * 2**20,
        )

    @property
    def image_sources(self) -> ImageSources:
        """Where images may come from."""
        return ImageSources(self.root, self.image_folders, self.image_hosts)

    @property
    def root(self) -> Path:
        """The folder that holds `config/`; relative paths inside the YAML files start here."""
        return self.config_dir.expanduser().absolute().parent

    @property
    def models_file(self) -> Path:
        return self.config_dir / "models.yaml"

    @property
    def pipeline_file(self) -> Path:
        return self.config_dir / "pipeline.yaml"

    @property
    def sessions_folder(self) -> Path:
        return (self.sessions_dir or self.root / "sessions").expanduser().absolute()

    @property
    def cache_folder(self) -> Path:
        return self.cache_dir.expanduser().absolute()
