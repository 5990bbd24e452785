"""What a rerun from a stage changes, runs again, and carries over from its parent session."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm_core.documents import near_name
from llm_core.errors import InputError, SessionError
from llm_core.overrides import override, replace_model
from llm_core.pipeline import PipelineSpec
from llm_core.plan import Plan, StagePlan
from llm_core.planner import make_plan
from llm_core.registry import ModelRegistry
from llm_core.session_files import load_session, load_steps
from llm_core.session_images import Images, kept_images
from llm_core.session_records import Branch, SessionRecord
from llm_core.snapshot import Snapshot, load_snapshot


@dataclass(frozen=True)
class Changes:
    """What differs from the parent, by stage."""

    assignments: tuple[str, ...] = ()
    """`stage.param=value`"""
    models: Mapping[str, str] = field(default_factory=dict)
    """stage → the model that takes the place of its own"""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """stage → its instructions"""

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self.models, *self.prompts)

    @property
    def said(self) -> tuple[str, ...]:
        models = (f"{stage}: model {model}" for stage, model in self.models.items())
        return (*self.assignments, *models, *(f"{stage}: instructions" for stage in self.prompts))


@dataclass(frozen=True)
class Rerun:
    """A child session to be."""

    question: str
    spec: PipelineSpec
    plan: Plan
    registry: ModelRegistry
    again: frozenset[str]
    """The stages that run."""
    branch: Branch
    snapshot: Snapshot
    """The parent's."""
    images: Images
    """As the parent saw them."""


def plan_rerun(
    sessions: Path, session_id: str, from_stage: str, changes: Changes, today: ModelRegistry, cache: Path
) -> Rerun:
    """Plan to run `from_stage` of a session again, and all that depends on it.

    Args:
        today: of models.yaml as it is now; only a model that takes another's place comes from it.

    Raises:
        GgufFlowError: one line; nothing was started.
    """
    parent = load_session(sessions, session_id)
    if parent.dataset:
        raise InputError(f"{parent.id} went through a dataset; run `gguf-flow batch` again")
    snapshot = load_snapshot(sessions, parent.id)
    before = make_plan(snapshot.spec, snapshot.registry, source=snapshot.path)
    written = [stage.id for stage in snapshot.spec.stages]
    for stage_id, ids in ((from_stage, [stage.id for stage in before.stages]), *((s, written) for s in changes.stages)):
        if stage_id not in ids:
            raise InputError(f"{parent.id} has no stage '{stage_id}'{near_name(stage_id, ids)}")
    spec = _changed(snapshot.spec, changes)
    registry = _with_replacements(snapshot, changes, today)
    after = make_plan(spec, registry, source=snapshot.path)
    again = downstream(after, from_stage)
    for old, new in zip(before.stages, after.stages, strict=True):
        if new.id not in again and old != new:
            raise InputError(f"stage '{new.id}' does not depend on '{from_stage}'; a change of it would do nothing")
    carried = _carried(sessions, parent, before, after, again, from_stage)
    wanted = {call.model for call in of_stages(after, again).calls}
    snapshot.check_models(wanted - set(changes.models.values()), cache)
    images = kept_images(sessions / parent.id, parent.images)
    branch = Branch(parent.id, parent.flow_run_id, from_stage, changes.said, sessions / parent.id, carried)
    return Rerun(parent.question, spec, after, registry, again, branch, snapshot, images)


def downstream(plan: Plan, from_stage: str) -> frozenset[str]:
    """`from_stage` with its layers, and every stage that reads it, straight or through others."""
    reached = {stage.id for stage in plan.stages if from_stage in (stage.id, stage.layer_of)}
    for stage in plan.stages:  # in an order in which each follows its inputs
        if reached & set(stage.inputs):
            reached.add(stage.id)
    return frozenset(reached)


def of_stages(plan: Plan, ids: frozenset[str]) -> Plan:
    """`plan` with no other stages than these."""
    return replace(plan, stages=tuple(stage for stage in plan.stages if stage.id in ids))


def _changed(spec: PipelineSpec, changes: Changes) -> PipelineSpec:
    for stage, model in changes.models.items():
        spec = replace_model(spec, stage, model)
    prompts = [f"{stage}.instructions={text}" for stage, text in changes.prompts.items()]
    return override(spec, [*changes.assignments, *prompts])


def _with_replacements(snapshot: Snapshot, changes: Changes, today: ModelRegistry) -> ModelRegistry:
    """The snapshot's models, and of today's those that take another's place."""
    known = snapshot.registry
    new = set(changes.models.values()) - {*known.available, *known.remote}
    return replace(
        known,
        available=known.available | {name: model for name, model in today.available.items() if name in new},
        missing={name: model for name, model in today.missing.items() if name in new},
        remote=known.remote | {name: model for name, model in today.remote.items() if name in new},
    )


def _carried(
    sessions: Path, parent: SessionRecord, before: Plan, after: Plan, again: frozenset[str], from_stage: str
) -> dict[str, str]:
    """File name by step id, of the steps that are not run again."""
    steps = load_steps(sessions, parent)
    for stage in after.stages:
        if stage.id not in again and not any(step.stage == stage.id for step in steps):
            raise SessionError(f"{parent.id} has no answer of stage '{stage.id}'; rerun from it or from an earlier one")
    kept = {step.id for step in steps if step.stage not in again}
    if _differs_in_aggregation_only(_stage(before, from_stage), _stage(after, from_stage)):
        kept |= {step.id for step in steps if step.stage == from_stage and step.kind == "answer"}
        layers = {stage.id for stage in after.stages if stage.layer_of == from_stage}
        kept |= {step.id for step in steps if step.stage in layers}
    return {step_id: file for step_id, file in parent.files.items() if step_id in kept}


def _stage(plan: Plan, stage_id: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.id == stage_id)


def _differs_in_aggregation_only(before: StagePlan, after: StagePlan) -> bool:
    return before != after and replace(before, aggregation=after.aggregation) == after
