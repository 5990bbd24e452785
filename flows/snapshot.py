"""What a run was made of, for `config_snapshot.json`."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.planned import Planned
from llm_core.errors import InsufficientMemory
from llm_core.fingerprint import sha256, text_sha256
from llm_core.machine import cpu_name
from llm_core.residency import Residency
from llm_core.session_records import FORMAT
from llm_core.settings import Settings


def config_snapshot(planned: Planned, residency: Residency | InsufficientMemory, settings: Settings) -> dict[str, Any]:
    """The pipeline as written and as planned, each model's file with size and SHA-256, and the versions used."""
    models: dict[str, Any] = {}
    memory = {}
    if isinstance(residency, Residency):
        placements = [*(p for stage in residency.stages for p in stage.placements), *residency.spares]
        memory = {p.call.model: {"load": asdict(p.load), **asdict(residency.needs[p.load])} for p in placements}
    for call in planned.plan.every_call:
        if call.remote:
            entry = planned.registry.remote[call.model].entry
            models[call.model] = {"entry": entry.model_dump(mode="json", exclude_defaults=True)}
            continue
        model = planned.registry.available[call.model]
        if not (
            model.path.exists() and (model.mmproj is None or model.mmproj.path.exists())
        ):  # only steps that are carried over name it
            models[call.model] = planned.models_before[call.model]
            continue
        models[call.model] = {
            **_file(model.path, settings),
            "chat_template_sha256": text_sha256(model.gguf.chat_template),
            "architecture": model.gguf.architecture,
            "quantization": model.gguf.quantization,
            "mmproj": _file(model.mmproj.path, settings) if model.mmproj else None,
            "memory": memory.get(call.model),
            "entry": model.entry.model_dump(mode="json", exclude_defaults=True),
        }
    return {
        "format": FORMAT,
        "pipeline": planned.spec.model_dump(mode="json", exclude_none=True),
        "plan": asdict(planned.plan),
        "defaults": planned.registry.defaults.model_dump(mode="json", exclude_none=True),
        "models": models,
        "versions": {name: version(name) for name in ("gguf-flow", "llama-cpp-python", "llguidance", "prefect")},
        "machine": {"platform": platform.platform(), "python": platform.python_version(), "cpu": cpu_name()},
    }


def _file(path: Path, settings: Settings) -> dict[str, Any]:
    return {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "sha256": sha256(path, settings.cache_folder),
    }
