"""One stage of pipeline.yaml as written: its members, what they are asked, and how their answers become one."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from llm_core.aggregation import KINDS, VOTES, check_template
from llm_core.constraints import grammar_constraint, schema_constraint
from llm_core.custom_aggregation import find_custom
from llm_core.documents import Document, describe, near_name
from llm_core.errors import AggregationError
from llm_core.parameters import GenerationParams
from llm_core.response_schema import read_grammar, read_schema

ONLY_OF: Mapping[str, tuple[str, ...]] = {
    "weights": ("weighted_vote",),
    "pattern": (*VOTES, "cascade"),
    "threshold": ("cascade",),
    "at_least": ("cascade",),
}
"""Keys of an aggregation that mean something for some types alone."""
OutputMode = Literal["answer_only", "input_plus_answer", "question_and_answer"]


def aggregation_kind(written: Any) -> str:
    """The name of an aggregation, however its case and dashes are written."""
    return str(written).strip().lower().replace("-", "_")


class MemberSpec(Document):
    """One model of a stage. What it sets goes before what its stage sets."""

    model: str
    system_prompt: str | None = None
    instructions: str | None = None
    generation: GenerationParams = GenerationParams()
    samples: int = Field(1, ge=1, le=100, description="answers drawn from this model, in one batch")


class AggregationSpec(Document):
    """How the answers of a stage become one."""

    type: str = "concat"
    synthesis_model: str | None = Field(None, description="writes the one answer from all candidates")
    on_overflow: Literal["refuse", "summarise"] = Field(
        "refuse", description="what is done with candidates that do not fit into the synthesis model's context together"
    )
    judge_model: str | None = Field(None, description="picks one of the candidates")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="of votes, by model or member; 1 if left out"
    )
    pattern: str | None = Field(None, description="a regular expression; what it finds last is the vote")
    threshold: float | None = Field(None, gt=0, le=1, description="of agreement, at which a cascade stops; unset: 0.6")
    at_least: int | None = Field(None, ge=1, description="so many answers before a cascade stops; unset: 2")
    template: str | None = Field(None, description="jinja2, for custom_template")
    system_prompt: str | None = None
    instructions: str | None = None
    generation: GenerationParams = GenerationParams()

    @field_validator("type", mode="before")
    @classmethod
    def _known_type(cls, value: Any) -> str:
        kind = aggregation_kind(value)
        if kind in KINDS:
            return kind
        try:
            if find_custom(str(value)):
                return str(value)
        except AggregationError as error:
            raise ValueError(str(error)) from None
        raise ValueError(f"unknown aggregation '{value}'{near_name(kind, KINDS)}")

    @field_validator("pattern")
    @classmethod
    def _valid_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.type == "synthesis" and not self.synthesis_model:
            raise ValueError("aggregation 'synthesis' needs 'synthesis_model'")
        if self.type == "custom_template" and not self.template:
            raise ValueError("aggregation 'custom_template' needs 'template'")
        if self.type == "judge" and not self.judge_model:
            raise ValueError("aggregation 'judge' needs 'judge_model'")
        if self.type == "weighted_vote" and not self.weights:
            raise ValueError("aggregation 'weighted_vote' needs 'weights'")
        for key, kinds in ONLY_OF.items():
            if getattr(self, key) and self.type not in kinds:
                raise ValueError(f"'{key}' belongs to {' or '.join(kinds)}, not to '{self.type}'")
        if self.template:
            try:
                check_template(self.template)
            except AggregationError as error:
                raise ValueError(f"template: {error}") from None
        return self


class StageSpec(Document):
    """One stage as written. `model` is kept as a single member of `members`."""

    id: str = Field(min_length=1, max_length=100)
    type: Literal["single", "multi"]
    members: tuple[MemberSpec, ...] = Field(min_length=1)
    system_prompt: str | None = None
    instructions: str | None = None
    generation: GenerationParams = GenerationParams()
    input_from: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = Field(
        None, description="what it looks at: `question`, a path or a URL, or a list of these"
    )
    output_mode: OutputMode = "answer_only"
    aggregation: AggregationSpec | None = None
    approve: bool = Field(False, description="a person looks at the answer, and may edit it, before the run goes on")
    retries: int | None = Field(None, ge=0, le=100, description="of a step whose model process crashed")
    quorum: int | None = Field(None, ge=1, description="so many members must answer; left out: all")
    quorum_wait_s: float | None = Field(
        None, ge=0, description="once they have, how long the others are waited for; unset: until they end"
    )
    member_timeout_s: float | None = Field(None, gt=0, description="a member that takes longer has no answer")
    fallback: tuple[str, ...] = Field((), description="models that are asked, in turn, where one gives no answer")
    layers: int = Field(1, ge=1, le=10, description="rounds, in each of which all see the answers of the one before")
    layer_instructions: str | None = Field(
        None, description="what to do with those answers, after a member's own instructions"
    )
    cache: bool | None = Field(None, description="answer an identical call from an earlier session")
    response_schema: dict[str, Any] | bool | None = Field(None, description="JSON schema that every answer satisfies")
    grammar: str | None = Field(None, description="Lark or GBNF that every answer matches")
    think: bool = Field(False, description="free text first; only what comes after it is held to schema or grammar")
    on_truncation: Literal["complete", "error"] | None = Field(
        None, description="what becomes of a constrained answer that is cut off; unset: complete"
    )

    @field_validator("response_schema", mode="before")
    @classmethod
    def _the_schema_itself(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return None
        schema = read_schema(value, (info.context or {}).get("folder"))
        schema_constraint(schema)
        return schema

    @field_validator("grammar")
    @classmethod
    def _the_grammar_itself(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        grammar = read_grammar(value, (info.context or {}).get("folder"))
        grammar_constraint(grammar)
        return grammar

    @field_validator("images", mode="before")
    @classmethod
    def _one_image(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        constraints = [key for key in ("response_schema", "grammar") if getattr(self, key) is not None]
        if len(constraints) == 2:
            raise ValueError("takes either 'response_schema' or 'grammar', not both")
        if self.aggregation and self.aggregation.type == "field_vote" and self.response_schema is None:
            raise ValueError("aggregation 'field_vote' needs 'response_schema' beside it")
        if self.quorum_wait_s is not None and self.quorum is None:
            raise ValueError("'quorum_wait_s' needs 'quorum' beside it")
        if self.quorum_wait_s is not None and self.aggregation and self.aggregation.type == "cascade":
            raise ValueError("'quorum_wait_s' has no sense in a cascade, which asks one member after another")
        for key in ("think", "on_truncation"):
            if getattr(self, key) and not constraints:
                raise ValueError(f"'{key}' needs 'response_schema' or 'grammar' beside it")
        return self

    @model_validator(mode="after")
    def _layers_of_several(self) -> Self:
        if self.layers > 1 and self.type == "single":
            raise ValueError("'layers' needs several answers: 'models', or 'samples' of one model")
        if self.layer_instructions is not None and self.layers == 1:
            raise ValueError("'layer_instructions' needs 'layers: 2' or more beside it")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_shape(cls, data: Any) -> Any:
        """Fold the spellings (`model`/`models`, aggregation by name or mapping) into one."""
        if not isinstance(data, Mapping) or "members" in data:
            return data
        stage = {key: value for key, value in data.items() if value is not None}
        _refuse_unknown_keys(stage, cls)
        samples = stage.pop("samples", 1)
        stage["type"] = _stage_type(stage, samples)
        models = stage.pop("models", None)
        if models is None:
            models = [stage.pop("model")]
        elif isinstance(models, str | Mapping):
            models = [models]
        stage["members"] = [_member(position, written, samples) for position, written in enumerate(models)]
        for key in ("input_from", "fallback"):
            if isinstance(stage.get(key), str):
                stage[key] = [stage[key]]
        aggregation = stage.pop("aggregation", None)
        beside = {key: stage.pop(key) for key in ("synthesis_model", "judge_model", "template") if key in stage}
        if aggregation is not None or beside or stage["type"] == "multi":
            stage["aggregation"] = beside | _aggregation_mapping(aggregation)
        return stage


def _member(position: int, written: Any, samples: Any) -> MemberSpec:
    member = {"model": written} if isinstance(written, str) else written
    try:
        return MemberSpec.model_validate({"samples": samples, **member} if isinstance(member, Mapping) else member)
    except ValidationError as error:
        raise ValueError(f"models[{position}]: {describe(error)}") from None


def _aggregation_mapping(aggregation: Any) -> dict[Any, Any]:
    if aggregation is None:
        return {}
    if isinstance(aggregation, str):
        return {"type": aggregation}
    if isinstance(aggregation, Mapping):
        return dict(aggregation)
    raise ValueError("aggregation: expected a name or a mapping")


def _refuse_unknown_keys(stage: Mapping[str, Any], spec: type[StageSpec]) -> None:
    known = [
        *(name for name in spec.model_fields if name != "members"),
        "model",
        "models",
        "samples",
        "synthesis_model",
        "judge_model",
        "template",
    ]
    for key in stage:
        if key in GenerationParams.model_fields:
            raise ValueError(f"'{key}' belongs under 'generation:' of the stage")
        if key not in known:
            raise ValueError(f"unknown key '{key}'{near_name(key, known)}")


def _stage_type(stage: Mapping[str, Any], samples: Any) -> str:
    has_one, has_many = "model" in stage, "models" in stage
    if has_one == has_many:
        raise ValueError("needs either 'model' or 'models'" + (", not both" if has_one else ""))
    if has_many and not (stage["models"] and isinstance(stage["models"], str | Mapping | list | tuple)):
        raise ValueError("models: expected a list of model names")
    if not has_many and not isinstance(stage["model"], str):
        raise ValueError("model: expected a model's name")
    kind = stage.get("type") or ("multi" if has_many or samples != 1 else "single")
    if kind == "single" and has_many:
        raise ValueError("type 'single' takes 'model'; for 'models' the type is 'multi'")
    if kind == "single" and samples != 1:
        raise ValueError("type 'single' is one answer; with 'samples' the type is 'multi'")
    if kind == "multi" and has_one and samples == 1:
        raise ValueError("type 'multi' takes 'models', a list; for one 'model' the type is 'single'")
    return kind
