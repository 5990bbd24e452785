"""PipelineSpec × ModelRegistry → Plan."""

from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from llm_core.aggregation import template_references
from llm_core.cascade import DEFAULT_AT_LEAST, DEFAULT_THRESHOLD, StopRule
from llm_core.documents import near_name
from llm_core.errors import PlanError
from llm_core.member_calls import MemberCalls
from llm_core.mixture import ALL_ANSWERS, layer_id, layer_instructions
from llm_core.pipeline import BASE, PipelineSpec
from llm_core.plan import AggregationPlan, Call, Plan, StagePlan
from llm_core.registry import ModelRegistry
from llm_core.stage_spec import AggregationSpec, MemberSpec, StageSpec


def make_plan(spec: PipelineSpec, registry: ModelRegistry, *, source: Path | None = None) -> Plan:
    """Resolve every name and parameter of `spec`. Most specific first: member, stage, model, registry defaults.

    Args:
        source: the YAML file, for messages; `None`: the pipeline stands in none.

    Raises:
        PlanError: one line with file, key path and near name.
    """
    return _Planner(spec, registry, source).plan()


class _Planner:
    def __init__(self, spec: PipelineSpec, registry: ModelRegistry, source: Path | None) -> None:
        self.spec, self.registry = spec, registry
        name = "base_pipeline" if spec.name == BASE else f"pipelines.{spec.name}"
        self.where = f"{source}: {name}" if source else spec.name
        self.calls = MemberCalls(spec, registry)

    def plan(self) -> Plan:
        order = self._sorted_ids()
        self._check_required_models()
        stages: list[StagePlan] = []
        for stage_id in order:
            stages += self._layers(len(stages) + 1, stage_id)
        read = {source for stage in stages for source in stage.inputs}
        final = [stage.id for stage in self.spec.stages if stage.id not in read][-1]
        spec = self.spec
        return Plan(spec.name, spec.execution_mode, tuple(stages), spec.on_insufficient_memory, final)

    def _sorted_ids(self) -> list[str]:
        """Written order wherever the inputs allow it."""
        sorter = TopologicalSorter({stage.id: self.spec.inputs_of(stage) for stage in self.spec.stages})
        try:
            sorter.prepare()
        except CycleError as error:
            cycle = " → ".join(error.args[1])
            raise PlanError(f"{self.where}.stages: the stages wait for each other: {cycle}") from None
        written = [stage.id for stage in self.spec.stages]
        order: list[str] = []
        ready: set[str] = set()
        while sorter.is_active():
            ready.update(sorter.get_ready())
            following = min(ready, key=written.index)
            ready.remove(following)
            order.append(following)
            sorter.done(following)
        return order

    def _check_required_models(self) -> None:
        if self.spec.name != BASE:
            return
        for name, model in self.registry.missing.items():
            if model.entry.required_for_base:
                raise PlanError(f"{self.where}: model '{name}' is required_for_base: {model.path}: {model.reason}")

    def _layers(self, number: int, stage_id: str) -> list[StagePlan]:
        """The stage, after the layers that come before its own: of these, only the answers count."""
        stage = next(stage for stage in self.spec.stages if stage.id == stage_id)
        last = self._stage(number + stage.layers - 1, stage_id)
        early = replace(
            last, aggregation=AggregationPlan(ALL_ANSWERS), output_mode="answer_only", approve=False, layer_of=stage_id
        )
        ids = [layer_id(stage_id, layer) for layer in range(1, stage.layers)]
        layers = [*(replace(early, id=id, number=n) for n, id in enumerate(ids, number)), last]
        pairs = pairwise(layers)
        return [layers[0], *(_seeing(before.id, layer, stage.layer_instructions) for before, layer in pairs)]

    def _stage(self, number: int, stage_id: str) -> StagePlan:
        index, stage = next((i, s) for i, s in enumerate(self.spec.stages) if s.id == stage_id)
        where = f"{self.where}.stages[{index}]"
        inputs = self.spec.inputs_of(stage)
        calls: list[Call] = []
        for position, member in enumerate(stage.members):
            key = f"{where}.models[{position}]" if stage.type == "multi" else f"{where}.model"
            for _ in range(member.samples):
                calls.append(self.calls.call(where, key, stage, member, calls))
            if stage.images:
                self.calls.check_sight(key, (member.model, *stage.fallback))
        aggregation = None
        if stage.type == "multi" and stage.aggregation:
            aggregation = self._aggregation(where, stage, stage.aggregation, calls, inputs)
        return StagePlan(
            stage.id,
            number,
            inputs,
            tuple(calls),
            stage.output_mode,
            aggregation,
            retries=self.spec.retries if stage.retries is None else stage.retries,
            approve=stage.approve,
            quorum=self._quorum(where, stage, len(calls)),
            quorum_wait_s=stage.quorum_wait_s,
            images=stage.images or (),
        )

    def _quorum(self, where: str, stage: StageSpec, n_calls: int) -> int:
        if stage.quorum is not None and (stage.type == "single" or stage.quorum > n_calls):
            raise PlanError(f"{where}.quorum: {stage.quorum} of {n_calls} members cannot be")
        return stage.quorum or n_calls

    def _aggregation(
        self, where: str, stage: StageSpec, spec: AggregationSpec, calls: list[Call], inputs: tuple[str, ...]
    ) -> AggregationPlan:
        key = f"{where}.aggregation"
        if spec.template:
            known = {"inputs": list(inputs), "answers": [call.member for call in calls]}
            for variable, names in known.items():
                for name in sorted(template_references(spec.template, variable) - set(names)):
                    raise PlanError(f"{key}.template: unknown variable '{variable}.{name}'{near_name(name, names)}")
        self._check_members(key, stage, spec, calls)
        merging = AggregationPlan(
            spec.type,
            spec.template,
            instructions=spec.instructions,
            weights=tuple((call.member, self._weight(spec, call)) for call in calls) if spec.weights else (),
            pattern=spec.pattern,
            summarise=spec.on_overflow == "summarise",
            stop=self._stop_rule(key, stage, spec, len(calls)) if spec.type == "cascade" else None,
        )
        field = "judge_model" if spec.type == "judge" else "synthesis_model"
        model = getattr(spec, field)
        if model is None or spec.type not in ("synthesis", "custom_template", "judge"):
            return merging
        member = MemberSpec(
            model=model,
            system_prompt=spec.system_prompt,
            instructions=spec.instructions,
            generation=spec.generation,
        )
        of_members = ["system_prompt", "instructions", "member_timeout_s"]
        if spec.type == "judge":  # what it says is a number, and not the stage's answer
            of_members += ["response_schema", "grammar"]
        plain = stage.model_copy(update=dict.fromkeys(of_members))
        return replace(merging, synthesis=self.calls.call(where, f"{where}.aggregation.{field}", plain, member, []))

    def _check_members(self, key: str, stage: StageSpec, spec: AggregationSpec, calls: list[Call]) -> None:
        models = {call.model for call in calls}
        if spec.type == "self_consistency" and (len(models) > 1 or len(calls) < 2):
            raise PlanError(
                f"{key}: self_consistency takes one model with samples: 2 or more; majority_vote takes several"
            )
        if spec.type == "ranked" and len(calls) < 3:
            raise PlanError(f"{key}: ranked needs at least 3 members; each ranks the answers of the others")
        known = list(dict.fromkeys((*(call.model for call in calls), *(call.member for call in calls))))
        for name in spec.weights:
            if name not in known:
                raise PlanError(f"{key}.weights: stage '{stage.id}' has no member '{name}'{near_name(name, known)}")

    @staticmethod
    def _stop_rule(key: str, stage: StageSpec, spec: AggregationSpec, n_calls: int) -> StopRule:
        at_least = spec.at_least or DEFAULT_AT_LEAST
        if n_calls < 2:
            raise PlanError(f"{key}: cascade needs at least 2 members; several models, or samples: of one")
        if at_least > n_calls:
            raise PlanError(f"{key}.at_least: {at_least} of {n_calls} members cannot be")
        # A quorum is of those who have answered, so that a cascade cannot end below it.
        at_least = min(n_calls, max(at_least, stage.quorum or 0))
        return StopRule(spec.threshold or DEFAULT_THRESHOLD, at_least, spec.pattern)

    @staticmethod
    def _weight(spec: AggregationSpec, call: Call) -> float:
        return spec.weights.get(call.member, spec.weights.get(call.model, 1.0))


def _seeing(layer_before: str, stage: StagePlan, instructions: str | None) -> StagePlan:
    """`stage` with members that see all answers of another layer."""

    def seeing(call: Call) -> Call:
        told = layer_instructions(call.instructions, instructions)
        return replace(call, instructions=told, fallback=tuple(map(seeing, call.fallback)))

    calls = tuple(map(seeing, stage.calls))
    return replace(stage, inputs=(*stage.inputs, layer_before), calls=calls, layer_before=layer_before)
