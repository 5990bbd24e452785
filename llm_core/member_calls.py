"""One member of a stage → Call: its model looked up, its parameters resolved, its fallbacks too."""

from dataclasses import fields, replace

from llm_core.call_params import MAX_SEED, LoadParams, SamplingParams
from llm_core.constraints import constraint_of
from llm_core.documents import near_name
from llm_core.errors import PlanError
from llm_core.parameters import GenerationParams
from llm_core.pipeline import PipelineSpec
from llm_core.plan import Call
from llm_core.providers.registry import capabilities_of
from llm_core.registry import LocalModel, ModelRegistry, RegisteredRemote
from llm_core.stage_spec import MemberSpec, StageSpec

DEFAULT_N_CTX = 4096
"""Context length where no file says one, or the trained one if that is less."""


def can_see(registry: ModelRegistry, name: str) -> bool:
    """Whether a model takes images."""
    if name in registry.remote:
        return capabilities_of(registry.remote[name].remote).images
    return name in registry.available and registry.available[name].mmproj is not None


class MemberCalls:
    """Resolves members against the models that are here.

    Raises:
        PlanError: by any method; one line with file, key path and near name.
    """

    def __init__(self, spec: PipelineSpec, registry: ModelRegistry) -> None:
        self.spec, self.registry = spec, registry

    def check_sight(self, key: str, names: tuple[str, ...]) -> None:
        """Refuse models that cannot see images."""
        for name in names:
            if not can_see(self.registry, name):
                remedy = "set 'images: true' at its provider" if name in self.registry.remote else "give it an 'mmproj'"
                raise PlanError(f"{key}: model '{name}' cannot see images; {remedy} in models.yaml")

    def call(self, where: str, key: str, stage: StageSpec, member: MemberSpec, before: list[Call]) -> Call:
        """What `member` is to do, and who does it where its model cannot.

        Args:
            where: the stage, for messages.
            key: what names the member's model there.
            before: the calls of the members before it.
        """
        call = self._call_of(key, stage, member, before)
        if isinstance(model := self._model(key, stage.id, member.model), RegisteredRemote):
            self._check_written(key, model, stage, member)
        others: list[Call] = []
        for position, name in enumerate(stage.fallback):
            # Its generation is another model's; of that a fallback takes what it can.
            stands_in = member.model_copy(update={"model": name})
            others.append(
                replace(self._call_of(f"{where}.fallback[{position}]", stage, stands_in, before), member=call.member)
            )
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


def _free_label(model: str, taken: set[str]) -> str:
    label, number = model, 1
    while label in taken:
        number += 1
        label = f"{model}_{number}"
    return label
