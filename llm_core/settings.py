"""Where things are: folders from the environment, `.env`, or the current folder."""

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings read from `GGUF_FLOW_*` variables and `.env`; the defaults are folders of the current directory."""

    model_config = SettingsConfigDict(env_prefix="GGUF_FLOW_", env_file=".env", extra="ignore", frozen=True)

    config_dir: Path = Path("config")
    models_dir: Path | None = None
    """Overrides `models_directory` of models.yaml; a removable disk may hold it."""
    sessions_dir: Path | None = None
    cache_dir: Path = Path("~/.cache/gguf-flow")
    """File hashes and memory estimates; safe to delete."""

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
