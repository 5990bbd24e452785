"""pipeline.yaml → PipelineSpec: what was written, validated, before any model is looked at."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llm_core.documents import Document, load_document, near_name, validate
from llm_core.errors import ConfigError
from llm_core.mixture import layer_id
from llm_core.schedule import ScheduleSpec
from llm_core.stage_spec import StageSpec

BASE = "base"
"""The name under which `base_pipeline` runs."""
RESERVED = ("manual", "rerun", "prune", "batch")
"""Flows of gguf-flow's own, which are served under these names."""
QUESTION = "question"
"""Always there; as `input_from: question` it says that a stage reads nothing else."""

ExecutionMode = Literal["auto", "parallel", "sequential", "persistent"]


class PipelineSpec(Document):
    """A pipeline as written, under its name."""

    name: str = BASE
    description: str | None = None
    execution_mode: ExecutionMode = "auto"
    retries: int = Field(2, ge=0, le=100, description="of a step whose model process crashed")
    cache: bool = Field(False, description="answer identical calls from earlier sessions")
    on_insufficient_memory: Literal["sequential", "fail"] = Field(
        "fail", description="what mode parallel does where a stage's models do not fit side by side"
    )
    schedule: ScheduleSpec | None = Field(None, description="when it runs by itself while it is served")
    stages: tuple[StageSpec, ...] = Field(min_length=1)

    @field_validator("execution_mode", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("stages", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value is None or value == []:
            raise ValueError("the pipeline is empty; give it at least one stage")
        return value

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        ids = [stage.id for stage in self.stages]
        layers = {layer_id(s.id, layer): s.id for s in self.stages for layer in range(1, s.layers)}
        for number, stage in enumerate(self.stages):
            if stage.id == QUESTION:
                raise ValueError(f"stages[{number}].id: '{QUESTION}' is taken by the question itself")
            if stage.id in layers:
                raise ValueError(f"stages[{number}].id: '{stage.id}' is taken by a layer of '{layers[stage.id]}'")
            if stage.id in ids[:number]:
                raise ValueError(f"stages[{number}].id: two stages have the id '{stage.id}'")
            for source in stage.input_from or ():
                if source not in ids and source != QUESTION:
                    where = f"stages[{number}].input_from"
                    raise ValueError(f"{where}: no stage '{source}' in this pipeline{near_name(source, ids)}")
        return self

    def inputs_of(self, stage: StageSpec) -> tuple[str, ...]:
        """The stages that `stage` reads: as written, or the stage before."""
        if stage.input_from is not None:
            return tuple(dict.fromkeys(source for source in stage.input_from if source != QUESTION))
        position = self.stages.index(stage)
        return (self.stages[position - 1].id,) if position else ()


class PipelinesDocument(Document):
    """The whole of pipeline.yaml."""

    version: Any = None
    base_pipeline: PipelineSpec | None = None
    pipelines: dict[str, PipelineSpec] = Field(default_factory=dict)

    @field_validator("pipelines", mode="before")
    @classmethod
    def _no_pipelines(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _one_base(self) -> Self:
        if self.base_pipeline is None and not self.pipelines:
            raise ValueError("no pipeline: give 'base_pipeline' or 'pipelines'")
        if self.base_pipeline is not None and BASE in self.pipelines:
            raise ValueError(f"pipelines.{BASE}: this name is taken by 'base_pipeline'")
        for name in RESERVED:
            if name in self.pipelines:
                raise ValueError(f"pipelines.{name}: this name is taken by gguf-flow itself")
        return self

    def by_name(self) -> dict[str, PipelineSpec]:
        base = {BASE: self.base_pipeline} if self.base_pipeline else {}
        return {name: spec.model_copy(update={"name": name}) for name, spec in (base | self.pipelines).items()}


def load_pipelines(path: Path) -> dict[str, PipelineSpec]:
    """Every pipeline of pipeline.yaml by name; `base_pipeline` is `base`.

    Raises:
        ConfigError: one line with file, key path and near name.
    """
    return load_document(path, PipelinesDocument).by_name()


def load_valid_pipelines(path: Path) -> tuple[dict[str, PipelineSpec], dict[str, str]]:
    """The pipelines of pipeline.yaml that are right, and a line for each that is not; both by name.

    Raises:
        ConfigError: the file as a whole cannot be read.
    """
    document = load_document(path, _AnyPipelines)
    found: dict[str, PipelineSpec] = {}
    problems: dict[str, str] = {}
    base = {BASE: ("base_pipeline", document.base_pipeline)} if document.base_pipeline is not None else {}
    for name, (key, written) in (
        base | {n: (f"pipelines.{n}", w) for n, w in (document.pipelines or {}).items()}
    ).items():
        try:
            if name in RESERVED:
                raise ConfigError(f"{path}: {key}: this name is taken by gguf-flow itself")
            spec = validate(written, PipelineSpec, f"{path}: {key}", path.parent)
            found[name] = spec.model_copy(update={"name": name})
        except ConfigError as error:
            problems[name] = str(error)
    return found, problems


class _AnyPipelines(Document):
    """pipeline.yaml, its pipelines not looked at yet."""

    version: Any = None
    base_pipeline: Any = None
    pipelines: dict[str, Any] | None = None


def load_pipeline(path: Path, name: str = BASE) -> PipelineSpec:
    """The pipeline `name` of pipeline.yaml; a dash in a name may be written as an underscore.

    Raises:
        ConfigError: no pipeline has that name, or it is wrong; what is wrong with another does not matter.
    """
    try:
        pipelines = load_pipelines(path)
    except ConfigError:
        pipelines, _ = load_valid_pipelines(path)
        if name not in pipelines and name.replace("_", "-") not in pipelines:
            raise
    for candidate in (name, name.replace("_", "-")):
        if candidate in pipelines:
            return pipelines[candidate]
    raise ConfigError(f"{path}: no pipeline '{name}'{near_name(name, pipelines)}")
