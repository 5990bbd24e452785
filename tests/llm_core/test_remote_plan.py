"""Remote models in a plan: what they are told, what they cannot do, and who stands in."""

from pathlib import Path

import pytest

from llm_core.errors import InsufficientMemory, PlanError
from llm_core.machine import RAM
from llm_core.memory import DeviceNeed, ModelNeed
from llm_core.pipeline import load_pipeline
from llm_core.plan import Plan
from llm_core.plan_text import plan_text
from llm_core.planner import make_plan
from llm_core.registry import load_registry
from llm_core.residency import plan_residency
from llm_core.settings import Settings
from tests.conftest import Project
from tests.llm_core.tiny_gguf import write_tiny_gguf

MODELS = """
defaults: {temperature: 0.7, top_k: 20, max_tokens: 100}
models:
  m: {file: m.gguf}
  gpt: {provider: {type: openai, model: gpt-tiny}}
  claude: {provider: anthropic}
  own: {provider: {type: custom_http, url: "http://x/y", body: "[{{ prompt | tojson }}]", answer: /0}}
"""


@pytest.fixture(autouse=True)
def file(project: Project) -> None:
    write_tiny_gguf(project.path / "models" / "m.gguf")


def plan(project: Project, *stages: str, models: str = MODELS) -> Plan:
    project.models(models)
    path = project.pipeline(f"base_pipeline: {{stages: [{', '.join(stages)}]}}")
    return make_plan(load_pipeline(path), load_registry(Settings()), source=path)


def test_remote_model_is_told_what_is_set_and_what_its_provider_takes(project: Project) -> None:
    (call,) = plan(project, "{id: a, model: gpt, generation: {seed: 4}}").calls
    assert (call.load, call.remote and call.remote.model) == (None, "gpt-tiny")
    assert call.chosen == ("seed", "temperature")
    assert (call.sampling.temperature, call.sampling.seed, call.sampling.max_tokens) == (0.7, 4, 100)


def test_members_of_a_stage_take_what_they_can_of_what_is_written_for_all(project: Project) -> None:
    planned = plan(project, "{id: a, models: [m, gpt, claude], generation: {temperature: 0.3, min_p: 0.1}}")
    assert [call.chosen for call in planned.calls] == [(), ("temperature",), ()]
    assert planned.stages[0].local == (planned.stages[0].calls[0],)


CLAUDE, GPT, OWN = "'claude' (anthropic)", "'gpt' (openai)", "'own' (custom_http)"
REFUSED = {
    "{id: a, model: claude, generation: {temperature: 0.3}}": (
        f"model: remote model {CLAUDE} takes no temperature; it takes max_tokens, stop, timeout_s"
    ),
    "{id: a, models: [m, {model: gpt, generation: {n_ctx: 512}}]}": (
        f"models[1]: remote model {GPT} takes no n_ctx; it takes max_tokens, seed, "
    ),
    "{id: a, model: gpt, grammar: 'start: \"a\"'}": f"model: remote model {GPT} cannot be held to a grammar",
    "{id: a, model: own, response_schema: {type: object}}": (
        f"model: remote model {OWN} cannot be held to a response_schema"
    ),
    "{id: a, model: gpt, think: true, response_schema: {type: object}}": (
        f"model: remote model {GPT} cannot think freely first"
    ),
    "{id: a, model: gpt, cache: true, generation: {temperature: 0.3}}": (
        "model: cache: true needs an answer that comes again; set a seed"
    ),
    "{id: a, model: m, fallback: own, grammar: 'start: \"a\"'}": (
        f"fallback[0]: remote model {OWN} cannot be held to a grammar"
    ),
}


@pytest.mark.parametrize(("stage", "said"), REFUSED.items())
def test_what_a_remote_model_cannot_do_is_refused(project: Project, stage: str, said: str) -> None:
    with pytest.raises(PlanError) as refusal:
        plan(project, stage)
    assert str(refusal.value).startswith(f"{project.path}/config/pipeline.yaml: base_pipeline.stages[0].{said}")


def test_models_that_cannot_see_are_refused_and_those_that_say_so_are_not(project: Project) -> None:
    seeing = MODELS.replace("model: gpt-tiny}", "model: gpt-tiny, images: true}")
    assert plan(project, "{id: a, models: [gpt, claude], images: question}", models=seeing).stages[0].images
    with pytest.raises(PlanError, match=r"model 'gpt' cannot see images; set 'images: true' at its provider in models"):
        plan(project, "{id: a, models: [claude, gpt], images: question}")
    with pytest.raises(PlanError, match=r"model 'm' cannot see images; give it an 'mmproj' in models"):
        plan(project, "{id: a, model: claude, fallback: m, images: question}")


def test_fallbacks_stand_in_under_the_same_name_with_what_they_take(project: Project) -> None:
    member = "{id: a, models: [{model: claude, instructions: Be kind.}, m], fallback: [gpt, m]}"
    first, _ = plan(project, member).calls
    assert [(call.model, call.member, call.instructions) for call in first.fallback] == [
        ("gpt", "claude", "Be kind."),
        ("m", "claude", "Be kind."),
    ]
    assert first.fallback[0].chosen == ("temperature",)


def test_plan_shows_who_is_asked_where_and_who_stands_in(project: Project) -> None:
    shown = plan_text(plan(project, "{id: a, model: gpt, fallback: m, generation: {max_tokens: 9}}"))
    assert "└─ gpt (openai: gpt-tiny): temperature 0.7 · max_tokens 9 · else m" in shown


def need(size: int) -> ModelNeed:
    return ModelNeed(DeviceNeed(size))


def test_remote_models_need_no_memory_and_the_next_stage_is_loaded_meanwhile(project: Project) -> None:
    planned = plan(project, "{id: a, models: [gpt, claude]}", "{id: b, model: m}")
    residency = plan_residency(planned, {RAM: 100}, lambda load: need(60), cores=2)
    a, b = residency.stages
    assert (a.placements, a.loaded, a.peak, len(a.prefetched)) == ((), (), {RAM: 0}, 1)
    assert (len(b.placements), b.peak) == (1, {RAM: 60})


def test_fallback_must_fit_alone_and_takes_no_memory_before_it_is_needed(project: Project) -> None:
    planned = plan(project, "{id: a, model: gpt, fallback: m}")
    residency = plan_residency(planned, {RAM: 100}, lambda load: need(60), cores=2)
    assert (residency.stages[0].loaded, residency.stages[0].peak) == ((), {RAM: 0})
    assert [placed.call.model for placed in residency.spares] == ["m"]
    with pytest.raises(InsufficientMemory, match=r"a needs .* for m alone"):
        plan_residency(planned, {RAM: 50}, lambda load: need(60), cores=2)


def test_file_that_is_no_longer_there_is_not_looked_for(project: Project, tmp_path: Path) -> None:
    """A project of remote models alone has an empty models folder."""
    (project.path / "models" / "m.gguf").unlink()
    assert plan(project, "{id: a, model: gpt}").final == "a"


def test_fallback_in_a_later_layer_is_told_the_same(project: Project) -> None:
    planned = plan(project, "{id: a, models: [gpt, m], layers: 2, fallback: claude, layer_instructions: Weigh them.}")
    first, last = planned.stages
    assert [call.fallback[0].instructions for call in first.calls] == [None, None]
    assert [call.fallback[0].instructions for call in last.calls] == ["Weigh them.", "Weigh them."]
