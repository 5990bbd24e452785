"""Answers of a real model, held to a schema or grammar, alone and beside others in one batch."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from llm_core import guide
from llm_core.call_params import Constraint, SamplingParams
from llm_core.constraints import grammar_constraint, schema_constraint
from llm_core.engine import Engine
from llm_core.engine_answer import Failed, Finished, Token
from llm_core.errors import ConstraintError
from llm_core.generation import GenerateRequest, GenerateResult, pack_request, unpack_request
from llm_core.structured import parsed_answer
from tests.llm_core.test_engine import make_engine, work_off

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "inhabitants": {"type": "integer", "minimum": 1}},
    "required": ["city", "inhabitants"],
    "additionalProperties": False,
}
YES_OR_NO = 'root ::= "yes" | "no"'
QUESTION = "What is the capital of France, and how many live there?"


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Engine:
    return make_engine(smollm, 512, 8)


def ask(
    engine: Engine, *constraints: Constraint | None, question: str = QUESTION, **sampling: Any
) -> dict[int, GenerateResult | ConstraintError]:
    """What came of a request for each constraint, all at once; what was streamed must add up to it."""
    for number, constraint in enumerate(constraints):
        params = SamplingParams(**{"temperature": 1.0, "max_tokens": 60, "seed": number, **sampling})
        engine.submit(number, GenerateRequest((("user", question),), params, threads=2, constraint=constraint))
    events = work_off(engine)
    found: dict[int, GenerateResult | ConstraintError] = {}
    for event in events:
        if isinstance(event, Finished):
            found[event.id] = event.result
            streamed = "".join(e.text for e in events if isinstance(e, Token) and e.id == event.id)
            assert streamed.endswith(event.result.text)
        elif isinstance(event, Failed):
            assert isinstance(event.error, ConstraintError)
            found[event.id] = event.error
    return found


def answer(engine: Engine, constraint: Constraint | None, **sampling: Any) -> GenerateResult:
    result = ask(engine, constraint, **sampling)[0]
    assert isinstance(result, GenerateResult), result
    return result


def error(engine: Engine, constraint: Constraint, **sampling: Any) -> str:
    result = ask(engine, constraint, **sampling)[0]
    assert isinstance(result, ConstraintError), result
    return str(result)


def test_constrained_answer_is_guessed_ahead_too(engine: Engine) -> None:
    names = {"type": "array", "items": {"enum": ["Reykjavik", "Ouagadougou"]}, "minItems": 6, "maxItems": 6}
    alone = {"temperature": 0, "max_tokens": 100, "deterministic": True}
    plain, guessed = (
        answer(engine, schema_constraint(names), prompt_lookup=lookup, **alone) for lookup in (False, True)
    )
    assert guessed.text == plain.text
    assert guessed.accepted_tokens


def test_constrained_and_free_answers_share_a_batch(engine: Engine) -> None:
    city, short = schema_constraint(CITY), grammar_constraint(YES_OR_NO)
    found = ask(engine, city, None, short, city, None, city)
    assert all(isinstance(result, GenerateResult) for result in found.values()), found
    for number in (0, 3, 5):
        value = parsed_answer(city, found[number].text)  # type: ignore[union-attr]
        assert set(value) == {"city", "inhabitants"}
        assert found[number].finish_reason == "stop"  # type: ignore[union-attr]
    assert found[2].text in ("yes", "no")  # type: ignore[union-attr]
    assert found[2].completion_tokens < 4, "where nothing may follow, the answer ends"  # type: ignore[union-attr]


def test_free_answer_is_not_changed_by_constrained_neighbours(engine: Engine) -> None:
    alone = answer(engine, None, temperature=0, deterministic=False)
    city = schema_constraint(CITY)
    beside = ask(engine, None, city, city, temperature=0, deterministic=False)[0]
    assert isinstance(beside, GenerateResult)
    assert beside.text == alone.text


def test_answers_that_share_a_schema_compile_it_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_one = guide._Masks.matcher

    def counted(self: Any, grammar: str) -> Any:
        compiled.append(grammar)
        return compile_one(self, grammar)

    monkeypatch.setattr(guide._Masks, "matcher", counted)
    constraint = schema_constraint({"type": "object", "properties": {"once": {"type": "boolean"}}})
    ask(engine, *[constraint] * 5, max_tokens=4)
    assert compiled == [constraint.grammar]


def test_seed_repeats_a_constrained_answer(engine: Engine) -> None:
    city = schema_constraint(CITY)
    assert answer(engine, city, seed=7).text == answer(engine, city, seed=7).text


def test_model_may_end_only_where_its_grammar_does(engine: Engine) -> None:
    constraint = grammar_constraint(r"start: /[a-z ]{40,}/")
    result = answer(engine, constraint, question="Say hi.", max_tokens=200)
    assert len(result.text) >= 40


@pytest.mark.parametrize("max_tokens", [1, 3, 6, 9])
def test_cut_off_answer_is_completed_and_marked(engine: Engine, max_tokens: int) -> None:
    city = schema_constraint(CITY)
    result = answer(engine, city, max_tokens=max_tokens)
    assert parsed_answer(city, result.text)
    assert (result.finish_reason, result.truncated, result.completion_tokens) == ("length", True, max_tokens)
    assert not answer(engine, city).truncated


def test_answer_that_fills_its_context_is_completed_too(smollm: Path) -> None:
    engine = make_engine(smollm, 64, 1)
    constraint = schema_constraint({"type": "object", "properties": {"text": {"type": "string", "minLength": 400}}})
    result = answer(engine, constraint, question="Write.", max_tokens=500)
    assert parsed_answer(constraint, result.text) is not None
    assert result.truncated


def test_cut_off_answer_is_an_error_where_that_is_wanted(engine: Engine) -> None:
    strict = schema_constraint(CITY, on_truncation="error")
    said = error(engine, strict, max_tokens=4)
    assert said.startswith("the answer was cut off at max_tokens 4")
    assert "on_truncation: complete" in said
    assert parsed_answer(strict, answer(engine, strict).text)


@pytest.mark.parametrize("stop", ["inhabitants", '"', "}"])
def test_stop_string_cuts_and_never_leaves_half_an_object(engine: Engine, stop: str) -> None:
    city = schema_constraint(CITY)
    result = answer(engine, city, stop=(stop,))
    assert parsed_answer(city, result.text)
    assert result.finish_reason == "stop"
    assert result.truncated == (stop != "}")  # which was the end anyway


def test_thoughts_are_free_and_the_answer_after_them_is_not(engine: Engine) -> None:
    city = schema_constraint(CITY, think=True)
    result = answer(engine, city, max_tokens=120)
    assert result.reasoning
    assert not result.reasoning.startswith("{")
    assert parsed_answer(city, result.text)
    assert not result.truncated


def test_thoughts_leave_half_the_tokens_to_the_answer(engine: Engine) -> None:
    city = schema_constraint(CITY, think=True)
    result = answer(engine, city, question="Write a very long story.", max_tokens=100)
    tokens_of_thoughts = len(engine.llama.tokenize(result.reasoning or ""))
    assert 40 < tokens_of_thoughts <= 50
    assert parsed_answer(city, result.text)


def test_thoughts_end_with_their_tag(engine: Engine) -> None:
    city = schema_constraint(CITY, think=True)
    bias = (("<", 100.0),)  # says nothing else, until half of the tokens are used
    thinking = Constraint(city.grammar, city.schema, think=True)
    result = answer(engine, thinking, max_tokens=60, logit_bias=bias)
    assert result.reasoning
    assert set(result.reasoning) == {"<"}
    assert parsed_answer(city, result.text)


def test_tag_that_the_model_writes_begins_the_answer(engine: Engine) -> None:
    thoughts = [engine.llama.tokenize("<think>Paris, I think.</think>"), engine.llama.tokenize("No tag")]
    found = []
    for tokens in thoughts:
        way = engine._guides.guide(schema_constraint(CITY, think=True), "", 100)
        sampler = Mock(draw=Mock(side_effect=tokens))
        for _ in tokens:
            way.next_token(sampler, 0)
        found.append((way.thinking, way.reasoning))
    assert found == [(False, "Paris, I think."), (True, "No tag")]


def test_bias_against_all_that_may_come_is_an_error_and_not_an_invalid_answer(engine: Engine) -> None:
    banned = tuple((text, -100.0) for text in ("{", '{"'))
    assert "forbids" in error(engine, schema_constraint(CITY), logit_bias=banned)


def test_grammar_that_cannot_be_compiled_fails_its_own_request_only(engine: Engine) -> None:
    found = ask(engine, Constraint("start: nothing"), None, max_tokens=4)
    assert isinstance(found[0], ConstraintError)
    assert isinstance(found[1], GenerateResult)


class Panic(BaseException):
    """As native code raises it: no Exception."""


@pytest.mark.parametrize("failure", [Panic("index out of bounds"), RuntimeError("bug")])
def test_mask_that_fails_ends_its_answer_and_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    apply, times = guide._Masks.apply, []

    def fails_once(self: Any, matcher: Any, output_index: int) -> None:
        times.append(output_index)
        if len(times) == 8:
            raise failure
        apply(self, matcher, output_index)

    monkeypatch.setattr(guide._Masks, "apply", fails_once)
    city = schema_constraint(CITY)
    found = ask(engine, city, city, None)
    errors = [str(result) for result in found.values() if isinstance(result, ConstraintError)]
    assert errors == [f"the mask failed: {type(failure).__name__}: {failure}"]
    assert len([result for result in found.values() if isinstance(result, GenerateResult)]) == 2


def test_matcher_in_an_error_state_ends_its_answer(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    take = guide.Guide._take

    def breaks(self: Any, token: int) -> None:
        take(self, token)
        self._matcher.consume_token(engine.llama.tokenize("?")[0])  # which the grammar forbids

    monkeypatch.setattr(guide.Guide, "_take", breaks)
    assert error(engine, schema_constraint(CITY)).startswith("no token may come next: ")


def test_closing_that_fails_ends_its_answer_and_no_other(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "closed", lambda grammar, text: b"\xff")
    found = ask(engine, schema_constraint(CITY), None, max_tokens=3)
    assert str(found[0]).startswith("the answer cannot be closed: UnicodeDecodeError")
    assert isinstance(found[1], GenerateResult)


def test_process_of_a_model_starts_without_what_only_constraints_need() -> None:
    code = "import sys, llm_core.engine, llm_core.worker_child; print({'pydantic', 'llguidance'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_constraint_comes_through_json_to_the_child() -> None:
    request = GenerateRequest((("user", "Hi"),), SamplingParams(), constraint=schema_constraint(CITY, think=True))
    assert unpack_request(json.loads(json.dumps(pack_request(request)))) == request


def test_log_probabilities_are_those_among_the_allowed_tokens(engine: Engine, smollm: Path) -> None:
    """Against `llama_cpp.Llama`, fed with the same tokens."""
    import llama_cpp
    import numpy as np

    result = answer(engine, replace(grammar_constraint(YES_OR_NO), logprobs=True), temperature=0)
    llama = llama_cpp.Llama(str(smollm), n_ctx=512, logits_all=True, flash_attn=True, n_threads=2, verbose=False)
    pieces = [llama.detokenize([token], prev_tokens=[1]) for token in range(llama.n_vocab())]
    llama.eval(llama.tokenize(result.prompt.encode(), add_bos=False, special=True))
    logits = llama.scores[llama.n_tokens - 1].astype(np.float64)
    allowed = [token for token, piece in enumerate(pieces) if piece in (b"y", b"ye", b"yes", b"n", b"no")]
    expected = logits[result.tokens[0]] - np.log(np.exp(logits[allowed]).sum())
    assert result.logprobs[0] == (len(pieces[result.tokens[0]]), pytest.approx(expected, abs=0.02))
    assert -5 < expected < -0.001, "there was something to choose"


def test_token_that_alone_may_come_is_certain(engine: Engine) -> None:
    result = answer(engine, replace(grammar_constraint('root ::= "xq"'), logprobs=True))
    assert {round(logprob, 4) for _, logprob in result.logprobs[1:]} <= {0.0}
    assert result.logprobs[-1][0] == 2


def test_log_probabilities_are_told_only_where_they_are_asked_for(engine: Engine) -> None:
    assert answer(engine, schema_constraint(CITY)).logprobs == ()
