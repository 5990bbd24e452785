"""One deployment per pipeline of pipeline.yaml, and those of gguf-flow's own flows."""

from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.schedules import Cron, Interval, Schedule

from llm_core.pipeline import RESERVED, PipelineSpec
from llm_core.schedule import ScheduleSpec

TAG = "gguf-flow"


def deployments(pipelines: dict[str, PipelineSpec]) -> list[RunnerDeployment]:
    """Of the pipelines by name, each under its flow's name, and of gguf-flow's own flows.

    The entrypoints are modules, so that a run finds them from any folder.
    """
    made = [_of_pipeline(name, spec) for name, spec in pipelines.items()]
    return [*made, *(_deployment(f"flows.{name}.{name}", name, [TAG]) for name in RESERVED)]


def _of_pipeline(name: str, spec: PipelineSpec) -> RunnerDeployment:
    schedules = [_schedule(spec.schedule)] if spec.schedule else None
    attribute = name.replace("-", "_")
    return _deployment(f"flows.pipelines.{attribute}", name, [TAG, "pipeline"], schedules=schedules)


def _deployment(entrypoint: str, name: str, tags: list[str], **options: Any) -> RunnerDeployment:
    # Not paused: the last `serve` has paused what it served when it went.
    return RunnerDeployment.from_entrypoint(entrypoint, name=name, tags=tags, paused=False, **options)


def _schedule(spec: ScheduleSpec) -> Schedule:
    options: dict[str, Any] = {
        "timezone": spec.timezone,
        "parameters": spec.parameters,
        "slug": "from-pipeline-yaml",
        "active": spec.active,
    }
    return Cron(spec.cron, **options) if spec.cron else Interval(spec.interval_s or 0, **options)
