"""What a run was made of, for `config_snapshot.json`."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from llm_core.errors import InsufficientMemory
from llm_core.fingerprint import sha256
from llm_core.pipeline import PipelineSpec
from llm_core.plan import Plan
from llm_core.registry import ModelRegistry
from llm_core.residency import Residency
from llm_core.settings import Settings


def config_snapshot(
    spec: PipelineSpec,
    plan: Plan,
    residency: Residency | InsufficientMemory,
    registry: ModelRegistry,
    settings: Settings,
) -> dict[str, Any]:
    """The pipeline as written and as planned, each model's file with size and SHA-256, and the versions used."""
    models = {}
    memory = {}
    if isinstance(residency, Residency):
        placements = [placement for stage in residency.stages for placement in stage.placements]
        memory = {p.call.model: {"load": asdict(p.load), **asdict(residency.needs[p.load])} for p in placements}
    for call in plan.calls:
        model = registry.available[call.model]
        models[call.model] = {
            "file": str(model.path),
            "size_bytes": model.path.stat().st_size,
            "sha256": sha256(model.path, settings.cache_folder),
            "architecture": model.gguf.architecture,
            "quantization": model.gguf.quantization,
            "memory": memory.get(call.model),
            "entry": model.entry.model_dump(mode="json", exclude_defaults=True),
        }
    return {
        "pipeline": spec.model_dump(mode="json", exclude_none=True),
        "plan": asdict(plan),
        "defaults": registry.defaults.model_dump(mode="json", exclude_none=True),
        "models": models,
        "versions": {name: version(name) for name in ("gguf-flow", "llama-cpp-python", "prefect")},
        "machine": {"platform": platform.platform(), "python": platform.python_version()},
    }
