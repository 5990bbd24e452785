"""The models a host offers by name, as models.yaml says now, and how it loads them when nobody says how."""

from dataclasses import dataclass

from llm_core.call_params import LoadParams
from llm_core.errors import InputError
from llm_core.image_sources import ImageSources
from llm_core.machine import physical_cores
from llm_core.memory import MemoryEstimates
from llm_core.pipeline import PipelineSpec
from llm_core.placement import place
from llm_core.plan import Call
from llm_core.planner import make_plan
from llm_core.pool import ModelPool
from llm_core.registry import ModelRegistry, load_registry
from llm_core.settings import Settings
from llm_core.stage_spec import MemberSpec, StageSpec

ANSWERS_AT_ONCE = 4
"""Sequences of a model that is loaded for the OpenAI API, where memory allows."""


@dataclass(frozen=True)
class HostedModel:
    """One model as a request finds it; its parameters are those of models.yaml."""

    name: str
    call: Call
    load: LoadParams


class HostModels:
    """Looks models up by name; models.yaml is read anew for each request, so it may change meanwhile."""

    def __init__(self, settings: Settings, estimates: MemoryEstimates, pool: ModelPool) -> None:
        self._settings, self._estimates, self._pool = settings, estimates, pool
        self.cores = physical_cores()

    @property
    def registry(self) -> ModelRegistry:
        return load_registry(self._settings)

    @property
    def image_sources(self) -> ImageSources:
        return self._settings.image_sources

    def find(self, name: str) -> HostedModel:
        """A model that is here, with its parameters.

        Raises:
            InputError: no model has that name, or its file cannot be used.
        """
        registry = self.registry
        if name not in registry.available:
            reason = "it is remote; ask its provider" if name in registry.remote else "it is not in models.yaml"
            reason = registry.missing[name].reason if name in registry.missing else reason
            known = ", ".join(registry.available) or "none"
            raise InputError(f"model '{name}' cannot be used: {reason}; available: {known}")
        stage = StageSpec(id="answer", type="single", members=(MemberSpec(model=name),))
        plan = make_plan(PipelineSpec(name="host", stages=(stage,)), registry)
        (call,) = plan.calls
        return HostedModel(
            name,
            call,
            self._resident(call) or place(plan, self._pool.budget, self._estimates.need, ANSWERS_AT_ONCE)[call],
        )

    def load_params(self, name: str) -> LoadParams:
        """How `name` is, or would be, loaded."""
        return self.find(name).load

    def _resident(self, call: Call) -> LoadParams | None:
        """A load of the same file with as long a context that is there already."""
        wanted = call.load
        assert wanted
        for load in (resident.load for resident in self._pool.status()):
            sees_enough = wanted.mmproj in (None, load.mmproj)
            if load.path == wanted.path and load.n_ctx >= wanted.n_ctx and sees_enough:
                return load
        return None
