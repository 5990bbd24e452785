"""Every answer of a session asked for once more. Real models, real Prefect server."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import compile_flow
from flows.replay_command import replay_session
from llm_core.model_step import request_of
from llm_core.pipeline import load_pipeline
from llm_core.settings import Settings
from tests.conftest import Project
from tests.flows.test_cli import assert_refused, gguf_flow

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  a: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 12, temperature: 0}}
  b: {file: b.gguf, overrides: {n_ctx: 512, max_tokens: 12, temperature: 0}}
"""
PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: a, instructions: Answer in one sentence.}
    - {id: panel, models: [a, b], input_from: draft, aggregation: majority_vote}
    - {id: final, models: [a, b], input_from: panel, aggregation: {type: synthesis, synthesis_model: b}}
"""
STEPS = [
    "1 draft: a",
    "2 panel: a",
    "2 panel: b",
    "2 panel: majority_vote",
    "3 final: a",
    "3 final: b",
    "3 final: synthesis",
]


def edit_snapshot(project: Project, old: str, new: str) -> None:
    path = project.sessions / "session_001" / "config_snapshot.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def replayed(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str], dict[str, Any]]:
    """(exit code, outcome by step, everything)"""
    capsys.readouterr()
    code = replay_session("session_001", Settings(), verify=True, as_json=True)
    said = json.loads(capsys.readouterr().out)
    return code, {step["step"]: step["outcome"] for step in said["steps"]}, said


async def test_session_at_temperature_0_is_identical_and_its_circumstances_are_noted(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    code, outcomes, said = replayed(capsys)
    assert (code, outcomes) == (0, dict.fromkeys(STEPS, "identical"))
    noted = {circumstance["what"]: circumstance for circumstance in said["circumstances"]}
    assert list(noted) == [
        "SHA-256 of a",
        "SHA-256 of a's chat template",
        "SHA-256 of b",
        "SHA-256 of b's chat template",
        "llama.cpp",
        "CPU",
    ]
    assert all(found["then"] == found["now"] is not None for found in noted.values())
    assert noted["llama.cpp"]["now"].startswith("llama-cpp-python ")


async def test_edited_prompt_names_its_step_and_no_other(finished: Project, capsys: pytest.CaptureFixture[str]) -> None:
    edit_snapshot(finished, "Answer in one sentence.", "Write a poem about pirates.")
    code, outcomes, said = replayed(capsys)
    assert (code, outcomes) == (1, dict.fromkeys(STEPS, "identical") | {"1 draft: a": "differs"})
    draft = said["steps"][0]
    assert draft["reason"] == "another prompt"
    assert 1 <= draft["token"] <= 12


async def test_edited_parameter_is_named(finished: Project, capsys: pytest.CaptureFixture[str]) -> None:
    edit_snapshot(finished, '"max_tokens": 12', '"max_tokens": 3')
    code, _, said = replayed(capsys)
    assert code == 1
    assert said["steps"][0]["reason"] == "max_tokens 3, then 12"
    assert said["steps"][0]["token"] == 4


async def test_token_that_was_another_then_is_told_by_its_number(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished.sessions / "session_001" / "step1.json"
    step = json.loads(path.read_text())
    tokens = step["tokens"].split()
    tokens[4] = "11"
    path.write_text(json.dumps(step | {"tokens": " ".join(tokens)}))
    code, outcomes, said = replayed(capsys)
    assert (code, outcomes["1 draft: a"], said["steps"][0]["token"]) == (1, "differs", 5)


async def test_model_that_has_changed_leaves_its_steps_unchecked(
    finished: Project, variants: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (finished.path / "models" / "b.gguf").unlink()
    finished.link_model(variants["Q4_0"], "b.gguf")
    code, outcomes, said = replayed(capsys)
    of_b = ["2 panel: b", "3 final: b", "3 final: synthesis"]
    assert (code, outcomes) == (3, dict.fromkeys(STEPS, "identical") | dict.fromkeys(of_b, "unchecked"))
    assert all("model 'b' has changed" in step["reason"] for step in said["steps"] if step["step"] in of_b)


async def test_drawn_answer_comes_again_by_its_seed_or_cannot_be_checked(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """It had a neighbour in its batch, or might have had: another token is no proof of anything."""
    finished.pipeline("base_pipeline: {stages: [{id: draft, model: a, samples: 3, generation: {temperature: 1.5}}]}")
    await compile_flow(load_pipeline(Settings().pipeline_file))(question="What is ice?")
    path = finished.sessions / "session_002" / "step1_a_2.json"
    step = json.loads(path.read_text())
    path.write_text(json.dumps(step | {"tokens": "1 2 3"}))
    capsys.readouterr()
    assert replay_session("session_002", Settings(), verify=True, as_json=True) == 3
    steps = {step["step"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["1 draft: a_2"]["outcome"] == "unchecked"
    assert steps["1 draft: a_2"]["reason"] == "not deterministic: it was not decoded alone"
    assert "differs" not in {step["outcome"] for step in steps.values()}


async def test_answer_that_was_guessed_from_its_prompt_comes_again(
    finished: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its context is longer than the 256 tokens up to which guesses change no rounding; it is guessed as then."""
    guessed: list[bool] = []
    monkeypatch.setattr(
        "llm_core.replay.request_of",
        lambda call, *rest: guessed.append(call.sampling.looks_up) or request_of(call, *rest),
    )
    text = "The baker had seven horses and he keep them in a long stable by the river. "
    stage = "{id: draft, model: a, generation: {temperature: 0.5, seed: 4, max_tokens: 60}}"
    finished.pipeline(f"base_pipeline: {{stages: [{stage}]}}")
    flow = compile_flow(load_pipeline(Settings().pipeline_file))
    await flow(question="Correct the mistakes in this text and write it again:\n\n" + text * 16)
    step = json.loads((finished.sessions / "session_002" / "step1.json").read_text())
    assert step["prompt_tokens"] > 256
    assert step["accepted_tokens"] > 10
    capsys.readouterr()
    assert replay_session("session_002", Settings(), verify=True, as_json=True) == 0
    assert guessed == [True]


async def test_command_line_shows_a_table_and_its_exit_code_tells(finished: Project) -> None:
    same = gguf_flow("replay", "session_001", "--verify")
    assert same.returncode == 0, same.stderr
    assert [line.split() for line in same.stdout.splitlines()[1:3]] == [
        ["1", "draft:", "a", "identical"],
        ["2", "panel:", "a", "identical"],
    ]
    edit_snapshot(finished, "Answer in one sentence.", "Write a poem about pirates.")
    other = gguf_flow("replay", "session_001", "--verify")
    assert other.returncode == 1
    assert "differs at token" in other.stdout
    assert gguf_flow("replay", "session_001").returncode == 0
    assert_refused(gguf_flow("replay", "session_009", "--verify"), "no session 'session_009'")
