"""`stage.param=value`: one parameter of a pipeline changed for one run."""

from typing import Any

import yaml

from llm_core.documents import near_name, validate
from llm_core.errors import InputError
from llm_core.parameters import GenerationParams
from llm_core.pipeline import PipelineSpec
from llm_core.stage_spec import ONLY_OF, aggregation_kind

_TEXTS = ("system_prompt", "instructions")
_MERGING = {"aggregation": "type"} | {key: key for key in ("synthesis_model", "judge_model", "threshold", "at_least")}


def override(spec: PipelineSpec, assignments: list[str]) -> PipelineSpec:
    """`spec` with every assignment made; what is set here goes before what a member of the stage sets.

    Raises:
        InputError: not of the form `stage.param=value`, or no such stage or parameter.
        ConfigError: a value that the parameter does not take.
    """
    for assignment in assignments:
        data = spec.model_dump()
        _assign(data, assignment)
        spec = validate(data, PipelineSpec, f"--set {assignment}")
    return spec


def replace_model(spec: PipelineSpec, stage_id: str, model: str) -> PipelineSpec:
    """`spec` with `model` in place of the one model of a stage, or of its synthesis where it has several members.

    Raises:
        InputError: the stage has several models, and no synthesis model.
    """
    data = spec.model_dump()
    stage = next(stage for stage in data["stages"] if stage["id"] == stage_id)
    if len({member["model"] for member in stage["members"]}) == 1:
        for member in stage["members"]:
            member["model"] = model
    elif stage["aggregation"] and stage["aggregation"]["synthesis_model"]:
        stage["aggregation"]["synthesis_model"] = model
    else:
        raise InputError(f"stage '{stage_id}' has several models; edit the pipeline to change one of them")
    return validate(data, PipelineSpec, f"--model {stage_id}={model}")


def _assign(pipeline: dict[str, Any], assignment: str) -> None:
    target, equals, value = assignment.partition("=")
    stage_id, dot, param = target.rpartition(".")
    if not (equals and dot):
        raise InputError(f"--set {assignment}: expected stage.param=value, such as draft.temperature=0.2")
    stages = {stage["id"]: stage for stage in pipeline["stages"]}
    if stage_id not in stages:
        raise InputError(f"--set {assignment}: no stage '{stage_id}'{near_name(stage_id, stages)}")
    known = (*GenerationParams.model_fields, *_TEXTS, *_MERGING)
    if param not in known:
        raise InputError(f"--set {assignment}: no parameter '{param}'{near_name(param, known)}")
    stage = stages[stage_id]
    if param in _MERGING:
        if stage["type"] == "single":
            raise InputError(f"--set {assignment}: stage '{stage_id}' has one answer; there is nothing to merge")
        if ":" in value:  # whoever may start a run, in the UI too, must not choose what code it runs
            raise InputError(f"--set {assignment}: an aggregation of your own stands in pipeline.yaml")
        merging = {**(stage["aggregation"] or {}), _MERGING[param]: value}
        if param == "aggregation":  # what only another type knows goes with it
            kind = aggregation_kind(value)
            merging = {key: kept for key, kept in merging.items() if kind in ONLY_OF.get(key, (kind,))}
        stage["aggregation"] = merging
        return
    for member in stage["members"]:  # what it does not set itself, it takes from its stage
        (member if param in _TEXTS else member["generation"])[param] = None
    if param in _TEXTS:
        stage[param] = value
        return
    if stage["aggregation"]:
        stage["aggregation"]["generation"][param] = None
    stage["generation"][param] = _parsed(assignment, value)


def _parsed(assignment: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"--set {assignment}: the value cannot be read; quote it") from None
