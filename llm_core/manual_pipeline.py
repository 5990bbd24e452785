"""A pipeline as a form asks for it: flat stages, every field with a title, a description and bounds."""

from copy import copy
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.fields import FieldInfo

from llm_core.documents import Document, validate
from llm_core.errors import GgufFlowError
from llm_core.parameters import GenerationParams
from llm_core.pipeline import ExecutionMode, PipelineSpec
from llm_core.registry import load_registry
from llm_core.settings import Settings
from llm_core.stage_spec import OutputMode

NAME = "manual"
FROM_MODEL = "Empty: what models.yaml says."


def _models_here(schema: dict[str, Any]) -> None:
    """Offers the models that are available when the schema is made."""
    try:
        registry = load_registry(Settings())
        schema["enum"] = [*registry.available, *registry.remote]
    except GgufFlowError:  # whoever makes the schema says so; the form takes any name
        return


def or_empty(schema: dict[str, Any]) -> None:
    """A field that may be left out, in place of a choice between a value and null."""
    schema.update({**schema.pop("anyOf")[0], **schema})
    schema.pop("default", None)


def _generation(name: str, title: str) -> Any:
    """A parameter of `GenerationParams` with its bounds, as a field of the form."""
    field: FieldInfo = copy(GenerationParams.model_fields[name])
    field.title = title
    said = field.description or ""
    field.description = f"{said[:1].upper()}{said[1:]}. {FROM_MODEL}"
    field.json_schema_extra = or_empty
    return field


ModelName = Annotated[str, Field(title="Model", json_schema_extra=_models_here)]


class ManualStage(Document):
    """One stage: one model, or several whose answers become one."""

    id: str = Field("", title="Name", max_length=100, description="What later stages call it. Empty: stage1, stage2, …")
    models: tuple[ModelName, ...] = Field(
        min_length=1, title="Models", description="One, or several that answer the same; a model may stand twice."
    )
    samples: int = Field(1, ge=1, le=100, title="Answers of each model", description="More than one are merged too.")
    system_prompt: str = Field("", title="System prompt", description="Who the model is to be.")
    instructions: str = Field("", title="Instructions", description="What to do with the question and what it reads.")
    input_from: tuple[str, ...] = Field(
        (), title="Reads", description="Names of earlier stages. Empty: the one before. `question`: none of them."
    )
    output_mode: OutputMode = Field("answer_only", title="Hands on", description="What later stages read of it.")
    temperature: float | None = _generation("temperature", "Temperature")
    top_p: float | None = _generation("top_p", "Top p")
    max_tokens: int | None = _generation("max_tokens", "Most tokens")
    seed: int | None = _generation("seed", "Seed")
    n_ctx: int | None = _generation("n_ctx", "Context length")
    n_gpu_layers: int | None = _generation("n_gpu_layers", "GPU layers")
    aggregation: Literal[
        "concat", "majority_vote", "cascade", "similarity", "ranked", "synthesis", "custom_template"
    ] = Field(
        "concat", title="Aggregation", description="How several answers become one; not used for a single answer."
    )
    synthesis_model: ModelName | None = Field(
        None,
        title="Synthesis model",
        description="Writes the one answer; for `synthesis`, and `custom_template`.",
        json_schema_extra=or_empty,
    )
    template: str = Field("", title="Template", description="jinja2 over question, inputs, answers; custom_template.")
    approve: bool = Field(False, title="Approve", description="Wait for a person, who may edit the answer.")

    def written(self, number: int) -> dict[str, Any]:
        """As pipeline.yaml would have it."""
        names = ("temperature", "top_p", "max_tokens", "seed", "n_ctx", "n_gpu_layers")
        stage: dict[str, Any] = {
            "id": self.id or f"stage{number}",
            "system_prompt": self.system_prompt or None,
            "instructions": self.instructions or None,
            "input_from": list(self.input_from) or None,
            "output_mode": self.output_mode,
            "approve": self.approve,
            "generation": {name: getattr(self, name) for name in names},
        }
        if len(self.models) == 1 and self.samples == 1:
            return stage | {"model": self.models[0]}
        aggregation = {"type": self.aggregation, "synthesis_model": self.synthesis_model}
        return stage | {
            "models": list(self.models),
            "samples": self.samples,
            "aggregation": aggregation | {"template": self.template or None},
        }


class ManualPipeline(Document):
    """Stages in the order in which they run."""

    stages: tuple[ManualStage, ...] = Field(
        min_length=1, title="Stages", description="Each reads the one before, unless it says what it reads."
    )
    execution_mode: ExecutionMode = Field(
        "auto", title="Execution mode", description="auto: a stage's models side by side where memory allows."
    )
    retries: int = Field(2, ge=0, le=100, title="Retries", description="Of a step whose model process crashed.")

    def spec(self, on_insufficient_memory: str) -> PipelineSpec:
        """The same as a pipeline of pipeline.yaml.

        Raises:
            ConfigError: as for a pipeline that is written there.
        """
        return validate(
            {
                "name": NAME,
                "execution_mode": self.execution_mode,
                "retries": self.retries,
                "on_insufficient_memory": on_insufficient_memory,
                "stages": [stage.written(number) for number, stage in enumerate(self.stages, 1)],
            },
            PipelineSpec,
            NAME,
        )
