"""A project folder to run benchmarks in: configuration, links to models, and settings that point to it."""

import os
from pathlib import Path


def make_project(folder: Path, files: dict[str, Path], pipelines: str) -> None:
    """Write `config/` with one model per file, and make `folder` the project of this process.

    Args:
        files: GGUF files by the model's name.
        pipelines: the text of pipeline.yaml.
    """
    for name in ("config", "models", "sessions"):
        (folder / name).mkdir()
    entries = []
    for name, path in files.items():
        (folder / "models" / f"{name}.gguf").symlink_to(path.resolve())
        entries.append(f"  {name}: {{file: {name}.gguf}}")
    (folder / "config" / "models.yaml").write_text("models:\n" + "\n".join(entries) + "\n")
    (folder / "config" / "pipeline.yaml").write_text(pipelines)
    os.environ |= {
        "GGUF_FLOW_CONFIG_DIR": str(folder / "config"),
        "GGUF_FLOW_MODELS_DIR": str(folder / "models"),
        "GGUF_FLOW_SESSIONS_DIR": str(folder / "sessions"),
        "GGUF_FLOW_CACHE_DIR": str(folder / "cache"),
    }
