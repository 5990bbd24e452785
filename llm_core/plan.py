"""PipelineSpec × ModelRegistry → Plan: what will run, frozen, and printable as the dry run."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from llm_core.aggregation import template_references
from llm_core.call_params import MAX_SEED, Constraint, LoadParams, SamplingParams
from llm_core.cascade import DEFAULT_AT_LEAST, DEFAULT_THRESHOLD, StopRule
from llm_core.constraints import constraint_of
from llm_core.documents import near_name
from llm_core.errors import PlanError
from llm_core.mixture import ALL_ANSWERS, layer_id, layer_instructions
from llm_core.parameters import GenerationParams
from llm_core.pipeline import BASE, PipelineSpec
from llm_core.providers.registry import RemoteModel, capabilities_of
from llm_core.registry import LocalModel, ModelRegistry, RegisteredRemote
from llm_core.stage_spec import AggregationSpec, MemberSpec, StageSpec

DEFAULT_N_CTX = 4096
"""Context length where no file says one, or the trained one if that is less."""


@dataclass(frozen=True)
class Call:
    """One model answering in one stage, every parameter resolved."""

    member: str
    """Unique in its stage: the model's name, `name_2` for its second appearance."""
    model: str
    load: LoadParams | None
    """As it would be on the CPU; residency decides on device and layers. `None`: a remote model."""
    sampling: SamplingParams
    remote: RemoteModel | None = None
    chosen: tuple[str, ...] = ()
    """Of `sampling`, what a remote model is told."""
    n_gpu_layers: int | None = None
    """As asked for; `None`: as many as fit, -1: all."""
    n_layers: int = 0
    """Layers there are, the output layer included."""
    threads: int | None = None
    """At most; `None`: what the cores allow."""
    system_prompt: str | None = None
    instructions: str | None = None
    strip_reasoning: bool = False
    cache: bool = False
    """Whether an identical call of an earlier session may answer it."""
    constraint: Constraint | None = None
    fallback: tuple["Call", ...] = ()
    """Who is asked, one after another, where this model gives no answer."""


@dataclass(frozen=True)
class AggregationPlan:
    kind: str
    template: str | None = None
    synthesis: Call | None = None
    """The model that writes the answer, or that judges."""
    instructions: str | None = None
    """Of members that rank each other's answers."""
    weights: tuple[tuple[str, float], ...] = ()
    """Of votes, by member."""
    pattern: str | None = None
    summarise: bool = False
    """Whether candidates that do not fit together are summarised for the synthesis."""
    stop: StopRule | None = None
    """Of a cascade, whose members are asked one after another."""


@dataclass(frozen=True)
class StagePlan:
    id: str
    number: int
    """Position in the order of execution, from 1."""
    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    output_mode: str
    aggregation: AggregationPlan | None
    retries: int
    approve: bool = False
    """Whether the run waits for a person after this stage."""
    quorum: int = 1
    """So many members must answer for the stage to go on."""
    layer_of: str | None = None
    """The stage that this is an earlier layer of."""
    layer_before: str | None = None
    """Of the inputs, the layer whose answers the members see; the stage hands nothing of it on."""
    images: tuple[str, ...] = ()
    """What its members look at: `question`, paths and URLs."""

    @property
    def asked(self) -> tuple[Call, ...]:
        """The members, and the model that writes or judges."""
        synthesis = self.aggregation.synthesis if self.aggregation else None
        return (*self.calls, synthesis) if synthesis else self.calls

    @property
    def local(self) -> tuple[Call, ...]:
        """The members whose models need memory."""
        return tuple(call for call in self.calls if call.load)

    @property
    def may_miss(self) -> bool:
        """Whether a member's failure may be none of the stage."""
        return self.quorum < len(self.calls)

    @property
    def stop(self) -> StopRule | None:
        """When no further member is asked; `None`: all are asked, at one time."""
        return self.aggregation.stop if self.aggregation else None

    @property
    def surely_asked(self) -> tuple[Call, ...]:
        """The members that are asked whatever others answer."""
        return self.calls[: self.stop.at_least] if self.stop else self.calls


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which each follows its inputs."""

    pipeline: str
    execution_mode: str
    stages: tuple[StagePlan, ...]
    on_insufficient_memory: str
    final: str
    """The stage whose answer is the pipeline's: the last written of those that nothing reads."""

    @property
    def calls(self) -> Iterator[Call]:
        for stage in self.stages:
            yield from stage.asked

    @property
    def every_call(self) -> Iterator[Call]:
        """Those too that are made only where another fails."""
        for call in self.calls:
            yield from (call, *call.fallback)

    def __str__(self) -> str:
        n_calls = sum(1 for _ in self.calls)
        lines = [f"pipeline {self.pipeline}: {len(self.stages)} stages, {n_calls} model calls, {self.execution_mode}"]
        for stage in self.stages:
            lines += ["", *_stage_lines(stage, is_final=stage.id == self.final)]
        return "\n".join(lines)


def make_plan(spec: PipelineSpec, registry: ModelRegistry, *, source: Path | None = None) -> Plan:
    """Resolve every name and parameter of `spec`. Most specific first: member, stage, model, registry defaults.

    Args:
        source: the YAML file, for messages; `None`: the pipeline stands in none.

    Raises:
        PlanError: one line with file, key path and near name.
    """
    return _Planner(spec, registry, source).plan()


def can_see(registry: ModelRegistry, name: str) -> bool:
    """Whether a model takes images."""
    if name in registry.remote:
        return capabilities_of(registry.remote[name].remote).images
    return name in registry.available and registry.available[name].mmproj is not None


class _Planner:
    def __init__(self, spec: PipelineSpec, registry: ModelRegistry, source: Path | None) -> None:
        self.spec, self.registry = spec, registry
        name = "base_pipeline" if spec.name == BASE else f"pipelines.{spec.name}"
        self.where = f"{source}: {name}" if source else spec.name

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
                calls.append(self._call(key, stage, member, calls))
            if stage.images:
                self._check_sight(key, (member.model, *stage.fallback))
        aggregation = None
        if stage.type == "multi" and stage.aggregation:
            aggregation = self._aggregation(f"{where}.aggregation", stage, stage.aggregation, calls, inputs)
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
            images=stage.images or (),
        )

    def _check_sight(self, key: str, names: tuple[str, ...]) -> None:
        for name in names:
            if not can_see(self.registry, name):
                remedy = "set 'images: true' at its provider" if name in self.registry.remote else "give it an 'mmproj'"
                raise PlanError(f"{key}: model '{name}' cannot see images; {remedy} in models.yaml")

    def _quorum(self, where: str, stage: StageSpec, n_calls: int) -> int:
        if stage.quorum is not None and (stage.type == "single" or stage.quorum > n_calls):
            raise PlanError(f"{where}.quorum: {stage.quorum} of {n_calls} members cannot be")
        return stage.quorum or n_calls

    def _call(self, key: str, stage: StageSpec, member: MemberSpec, before: list[Call]) -> Call:
        """What `member` is to do, and who does it where its model cannot."""
        call = self._call_of(key, stage, member, before)
        if isinstance(model := self._model(key, stage.id, member.model), RegisteredRemote):
            self._check_written(key, model, stage, member)
        others: list[Call] = []
        for position, name in enumerate(stage.fallback):
            # Its generation is another model's; of that a fallback takes what it can.
            stands_in = member.model_copy(update={"model": name})
            where = f"{key.rpartition('.')[0]}.fallback[{position}]"
            others.append(replace(self._call_of(where, stage, stands_in, before), member=call.member))
        return replace(call, fallback=tuple(others))

    def _call_of(self, key: str, stage: StageSpec, member: MemberSpec, before: list[Call]) -> Call:
        model = self._model(key, stage.id, member.model)
        written = member.generation.over(stage.generation)
        repetition = 0
        if member.generation.seed is None:  # one written for this member is taken as it is
            repetition = sum(call.model == member.model for call in before)
        chosen = written.over(model.entry.params).over(self.registry.defaults)
        sampling = self._sampling(chosen, repetition)
        limits = [limit for limit in (sampling.timeout_s, stage.member_timeout_s) if limit is not None]
        call = Call(
            member=_free_label(member.model, {call.member for call in before}),
            model=member.model,
            load=None,
            sampling=replace(sampling, timeout_s=min(limits, default=None)),
            system_prompt=stage.system_prompt if member.system_prompt is None else member.system_prompt,
            instructions=stage.instructions if member.instructions is None else member.instructions,
            strip_reasoning=model.entry.strip_reasoning,
            constraint=constraint_of(stage),
        )
        if isinstance(model, RegisteredRemote):
            return self._remote_call(key, call, stage, model, chosen)
        return replace(
            call,
            load=self._load_params(key, model, written),
            n_gpu_layers=chosen.n_gpu_layers,
            n_layers=(model.gguf.n_layers or 0) + 1,
            threads=model.entry.params.threads or self.registry.defaults.threads,
            cache=self._cache(key, stage, sampling.temperature == 0 or sampling.seed is not None),
        )

    def _remote_call(
        self, key: str, call: Call, stage: StageSpec, model: RegisteredRemote, chosen: GenerationParams
    ) -> Call:
        can = capabilities_of(model.remote)
        constraint, cannot = call.constraint, f"{key}: remote model '{model.name}' ({model.remote.provider}) cannot"
        if constraint and not (can.response_schema if constraint.schema else can.grammar):
            raise PlanError(f"{cannot} be held to a {'response_schema' if constraint.schema else 'grammar'}")
        if constraint and constraint.think:
            raise PlanError(f"{cannot} think freely first: 'think' is for local models")
        told = tuple(name for name in sorted(can.parameters) if getattr(chosen, name) is not None)
        seeded = "seed" in told and call.sampling.seed is not None
        comes_again = seeded or ("temperature" in told and call.sampling.temperature == 0)
        return replace(call, remote=model.remote, chosen=told, cache=self._cache(key, stage, comes_again))

    @staticmethod
    def _check_written(key: str, model: RegisteredRemote, stage: StageSpec, member: MemberSpec) -> None:
        """Refuse what was written for this very model and its provider does not take. Of what is written for a whole
        stage, each member takes what it can.
        """
        can = capabilities_of(model.remote).parameters | {"max_tokens", "timeout_s"}
        own = member.generation.over(model.entry.overrides)
        written = own.over(stage.generation) if stage.type == "single" else own
        for name, value in written.model_dump().items():
            if value is not None and name not in can:
                raise PlanError(
                    f"{key}: remote model '{model.name}' ({model.remote.provider}) takes no {name}; "
                    f"it takes {', '.join(sorted(can))}"
                )

    def _cache(self, key: str, stage: StageSpec, comes_again: bool) -> bool:
        if stage.cache and not comes_again:
            raise PlanError(f"{key}: cache: true needs an answer that comes again; set a seed, or temperature 0")
        return comes_again and (self.spec.cache if stage.cache is None else stage.cache)

    def _model(self, key: str, stage_id: str, name: str) -> LocalModel | RegisteredRemote:
        if name in self.registry.available:
            return self.registry.available[name]
        if name in self.registry.remote:
            return self.registry.remote[name]
        if name in self.registry.missing:
            model = self.registry.missing[name]
            raise PlanError(f"{key}: model '{name}' of stage '{stage_id}' is not usable: {model.path}: {model.reason}")
        near = near_name(name, self.registry.names)
        raise PlanError(f"{key}: unknown model '{name}' in stage '{stage_id}'{near}")

    def _load_params(self, key: str, model: LocalModel, written: GenerationParams) -> LoadParams:
        own, shared = written.over(model.entry.params), self.registry.defaults
        trained = model.gguf.context_length
        if own.n_ctx and trained and own.n_ctx > trained:
            raise PlanError(
                f"{key}: n_ctx {own.n_ctx} is more than the {trained} tokens '{model.name}' was trained for"
            )
        default = shared.n_ctx or DEFAULT_N_CTX
        n_ctx = own.n_ctx or min(default, trained or default)
        wide = own.over(shared)
        if wide.flash_attention is False and wide.kv_type not in (None, "f16"):
            raise PlanError(f"{key}: kv_type {wide.kv_type} needs flash attention; take f16 or leave it on")
        mmproj = str(model.mmproj.path) if model.mmproj else None
        kv_type, flash_attention = wide.kv_type or "f16", wide.flash_attention
        return LoadParams(str(model.path), n_ctx, kv_type=kv_type, flash_attention=flash_attention, mmproj=mmproj)

    def _sampling(self, params: GenerationParams, repetition: int) -> SamplingParams:
        chosen = {f.name: getattr(params, f.name) for f in fields(SamplingParams)}
        chosen["logit_bias"] = tuple(params.logit_bias.items()) if params.logit_bias else None
        sampling = SamplingParams(**{name: value for name, value in chosen.items() if value is not None})
        if sampling.seed is None or sampling.seed < 0:
            return replace(sampling, seed=None)
        return replace(sampling, seed=(sampling.seed + repetition) % (MAX_SEED + 1))

    def _aggregation(
        self, key: str, stage: StageSpec, spec: AggregationSpec, calls: list[Call], inputs: tuple[str, ...]
    ) -> AggregationPlan:
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
        return replace(merging, synthesis=self._call(f"{key}.{field}", plain, member, []))

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


def _free_label(model: str, taken: set[str]) -> str:
    label, number = model, 1
    while label in taken:
        number += 1
        label = f"{model}_{number}"
    return label


def _stage_lines(stage: StagePlan, is_final: bool) -> list[str]:
    inputs = ", ".join(("question", *stage.inputs))
    lines = [f"{stage.number}. {stage.id}   reads {inputs}   hands on {stage.output_mode}" + ("   ← answer" * is_final)]
    lines += [f"   looks at {', '.join(stage.images)}"] if stage.images else []
    for position, call in enumerate(stage.calls):
        branch = "├─" if stage.aggregation else "└─"
        lines.append(_call_line(branch, f"{_turn(stage, position)}{call.member}", call))
    if stage.aggregation:
        synthesis = stage.aggregation.synthesis
        if synthesis:
            lines.append(_call_line("└─", f"{stage.aggregation.kind} by {synthesis.member}", synthesis))
        else:
            to_next = ", for the next layer" if stage.layer_of else ""
            lines.append(f"   └─ {stage.aggregation.kind}{to_next}{_stop_line(stage.stop)}")
    if stage.approve:
        lines.append("   ⏸ waits for a person to approve or edit it")
    return lines


def _turn(stage: StagePlan, position: int) -> str:
    """When a member of a cascade is asked."""
    if position >= len(stage.surely_asked):
        return "then, if they disagree, "
    return "then " if stage.stop and position else ""


def _stop_line(stop: StopRule | None) -> str:
    if stop is None:
        return ""
    return f": asks on until {stop.at_least} or more have answered and agreement is {stop.threshold:g}"


def _call_line(branch: str, label: str, call: Call) -> str:
    sampling, load = call.sampling, call.load
    if load:
        who, drawn = Path(load.path).name, ["temperature"]
        drawn += ["top_p", "top_k", "min_p", "seed"] if sampling.temperature > 0 else []
    else:
        assert call.remote
        who, drawn = f"{call.remote.provider}: {call.remote.model}", list(call.chosen)
    parameters = [_parameter(name, getattr(sampling, name)) for name in drawn]
    parameters.append(f"max_tokens {sampling.max_tokens}")
    if load:
        parameters.append(f"n_ctx {load.n_ctx}")
        parameters += [f"KV {load.kv_type}"] if load.kv_type != "f16" else []
    parameters += ["cache"] if call.cache else []
    if call.constraint:
        parameters.append("by its response_schema" if call.constraint.schema else "by its grammar")
    if call.fallback:
        parameters.append(f"else {', else '.join(other.model for other in call.fallback)}")
    return f"   {branch} {label} ({who}): {' · '.join(parameters)}"


def _parameter(name: str, value: object) -> str:
    if name == "seed":
        return f"seed {'drawn' if value is None else value}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
