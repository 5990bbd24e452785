"""What is to run: a pipeline, resolved against the models that it is to run with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_core.pipeline import PipelineSpec
from llm_core.plan import Plan
from llm_core.planner import make_plan
from llm_core.registry import ModelRegistry, load_registry
from llm_core.rerun import of_stages
from llm_core.settings import Settings


@dataclass(frozen=True)
class Planned:
    """What is to run, before anything of the machine is asked for."""

    spec: PipelineSpec
    plan: Plan
    registry: ModelRegistry
    again: frozenset[str] | None = None
    """The stages that run; `None`: all of them."""
    models_before: Mapping[str, Any] = field(default_factory=dict)
    """What an earlier run's snapshot says of models whose files may be gone."""

    @property
    def running(self) -> Plan:
        return self.plan if self.again is None else of_stages(self.plan, self.again)


def plan_run(spec: PipelineSpec, settings: Settings, source: Path | None) -> Planned:
    """Plan a whole run with the models that are here.

    Args:
        source: the YAML file that `spec` stands in, for messages.

    Raises:
        GgufFlowError: the message says what is wrong, and where.
    """
    registry = load_registry(settings)
    return Planned(spec, make_plan(spec, registry, source=source), registry)
