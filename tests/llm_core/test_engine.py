"""The engine on a real model: many answers in one context, each as if it were alone."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from llama_cpp import Llama

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.engine import Engine
from llm_core.engine_answer import Failed, Finished, Started, Token
from llm_core.errors import GenerationTimeout
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.sampler import Sampler

SYSTEM = "You know the sea and all that lives in it. Answer in plain words. " * 26
"""416 tokens."""
TOPICS = "ice bread rain glass the moon a lighthouse copper tea salt a river wool chess paper the wind".split()
PROMPTS = [
    *(f"Say something about {topic}." for topic in TOPICS),
    "Hi",
    "What is the capital of France?",
    "Count from one to twenty in English, then in French." * 4,
    "Once upon a time there was a fisherman who could not swim. " * 12,
    "List three colours.\n\n1. red\n2.",
    "Почему небо синее?",
]
"""More than 20, from one word to 150 tokens."""
LONG_PROMPT = "Once upon a time there was a fisherman who could not swim. " * 14 + "Go on with this story."
"""A little under 256 tokens."""


def request(question: str, system: str | None = None, **sampling: object) -> GenerateRequest:
    messages = ((("system", system),) if system else ()) + (("user", question),)
    return GenerateRequest(messages, SamplingParams(**{"temperature": 0, "max_tokens": 16, **sampling}), threads=2)  # type: ignore[arg-type]


def make_engine(path: Path, n_ctx: int, sequences: int, **load: object) -> Engine:
    engine = Engine(LoadParams(str(path), n_ctx, sequences=sequences, **load))  # type: ignore[arg-type]
    engine.threads = 2
    return engine


def work_off(engine: Engine, until: Callable[[object], bool] = lambda event: False) -> list[object]:
    """Step until nothing is left to do, or an event is what is waited for."""
    events: list[object] = []
    while engine.busy:
        for event in engine.step():
            events.append(event)
            if until(event):
                return events
    return events


def results(events: list[object]) -> dict[int, GenerateResult]:
    return {event.id: event.result for event in events if isinstance(event, Finished)}


@pytest.fixture(scope="module")
def engine(smollm: Path) -> Engine:
    return make_engine(smollm, 768, 4)


@pytest.mark.parametrize("flash_attention", [True, False])
@pytest.mark.parametrize("file", ["Q4_1", "Q8_0"])
def test_greedy_tokens_are_those_of_llama_cpp_python(
    variants: dict[str, Path], file: str, flash_attention: bool
) -> None:
    path = variants[file]
    engine = make_engine(path, 512, 4, flash_attention=flash_attention)
    for id, prompt in enumerate(PROMPTS):
        engine.submit(id, request(prompt))
    ours = results(work_off(engine))
    llama = Llama(str(path), n_ctx=512, n_threads=2, n_threads_batch=2, flash_attn=flash_attention, verbose=False)
    for id, prompt in enumerate(PROMPTS):
        llama.reset()
        theirs = llama.create_chat_completion([{"role": "user", "content": prompt}], temperature=0, max_tokens=16)
        assert ours[id].text == theirs["choices"][0]["message"]["content"].strip()
        assert ours[id].completion_tokens == theirs["usage"]["completion_tokens"]
        assert ours[id].prompt_tokens == theirs["usage"]["prompt_tokens"]


def test_prompt_that_begins_like_another_finds_its_beginning_in_the_cache(engine: Engine) -> None:
    questions = [
        "Do whales sleep?",
        "What do crabs eat?",
        "How deep is the sea?",
        "Why is it salty?",
        "What is a wave?",
    ]
    alone = {}
    for id, question in enumerate(questions):
        engine.submit(id, request(question, SYSTEM, max_tokens=4))
        alone |= results(work_off(engine))
    for id, question in enumerate(questions):
        engine.submit(id, request(question, SYSTEM, max_tokens=4, deterministic=False))
    together = results(work_off(engine))
    assert [alone[id].cached_prompt_tokens for id in range(5)] == [0] * 5, "alone is alone"
    assert all(together[id].cached_prompt_tokens > 400 for id in range(5))
    assert [together[id].text for id in range(5)] == [alone[id].text for id in range(5)]


def test_prompts_that_come_at_once_wait_for_the_first_to_prefill_what_they_share(smollm: Path) -> None:
    engine = make_engine(smollm, 768, 4)
    for id, topic in enumerate(TOPICS[:4]):
        engine.submit(id, request(f"Tell me of {topic}.", SYSTEM, deterministic=False))
    cached = [result.cached_prompt_tokens for _, result in sorted(results(work_off(engine)).items())]
    assert cached[0] == 0
    assert all(n > 400 for n in cached[1:])


def test_request_to_be_decoded_alone_has_no_company(engine: Engine) -> None:
    for id, deterministic in enumerate((False, False, True, False)):
        engine.submit(id, request(PROMPTS[id], max_tokens=4 + id, deterministic=deterministic))
    seen = [(type(event), event.id) for event in work_off(engine) if not isinstance(event, Token)]
    assert seen[:2] == [(Started, 0), (Started, 1)]
    assert seen.index((Started, 2)) > max(seen.index((Finished, 0)), seen.index((Finished, 1)))
    assert seen[-2:] == [(Started, 3), (Finished, 3)]
    assert seen[-3] == (Finished, 2)


class Crowded:
    """Idle cores as on a machine where another process comes and goes."""

    def __init__(self, *counts: int) -> None:
        self._counts = itertools.cycle(counts)
        self.restarts = 0

    def restart(self) -> None:
        self.restarts += 1

    def count(self) -> int:
        return next(self._counts)


def threads_used(engine: Engine, monkeypatch: pytest.MonkeyPatch, idle: Crowded) -> list[int]:
    """Filled while the engine works: threads of each step."""
    used: list[int] = []
    monkeypatch.setattr(engine, "_idle_cores", idle)
    monkeypatch.setattr(engine.llama, "use_threads", used.append)
    return used


def test_threads_are_no_more_than_there_are_idle_cores(smollm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(smollm, 512, 2)
    used = threads_used(engine, monkeypatch, Crowded(4, 2, 1))
    engine.submit(0, request(PROMPTS[0], max_tokens=6, deterministic=False, prompt_lookup=False))
    work_off(engine)
    assert used == [2, 2, 1, 2, 2, 1]


def test_what_others_do_while_it_has_nothing_to_do_or_is_paused_is_not_counted(
    smollm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, idle = make_engine(smollm, 512, 1), Crowded(2)
    monkeypatch.setattr(engine, "_idle_cores", idle)
    for id in range(2):
        engine.submit(id, request(PROMPTS[id], max_tokens=6))
        work_off(engine)
        assert idle.restarts == id + 1, "once for each, as it begins"
    engine.threads = 0
    engine.threads = 2
    assert idle.restarts == 4


def test_answer_decoded_alone_keeps_its_threads_once_they_decide_how_it_rounds(
    smollm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(smollm, 512, 1)
    used = threads_used(engine, monkeypatch, Crowded(1))
    engine.submit(0, request(LONG_PROMPT, max_tokens=60))
    n_prompt = results(work_off(engine))[0].prompt_tokens
    # The prompt is one step; then one for each token, which has `n_prompt` tokens behind it or more.
    assert n_prompt < 256
    assert used == [1] * (1 + 256 - n_prompt) + [2] * (len(used) - 1 - 256 + n_prompt)
    assert used[-1] == 2


def test_logits_of_an_answer_decoded_alone_are_the_same_on_a_crowded_machine(
    smollm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(smollm, 512, 1, flash_attention=True)
    seen: list[bytes] = []
    draw = Sampler.draw

    def draw_and_note(sampler: Sampler, output_index: int) -> int:
        seen.append(engine.llama.logits(output_index).tobytes())
        return draw(sampler, output_index)

    monkeypatch.setattr(Sampler, "draw", draw_and_note)
    for id, idle in enumerate((Crowded(2), Crowded(1, 2, 1))):
        monkeypatch.setattr(engine, "_idle_cores", idle)
        engine.submit(id, request(LONG_PROMPT, max_tokens=60))
        result = results(work_off(engine))[id]
        assert result.prompt_tokens < 240 < 270 < result.prompt_tokens + result.completion_tokens
    half = len(seen) // 2
    assert seen[:half] == seen[half:]


def test_answer_that_is_moved_to_close_a_gap_goes_on_as_it_was(engine: Engine) -> None:
    lengths = {0: 2, 1: 30, 2: 3, 3: 30}
    for id, max_tokens in lengths.items():
        engine.submit(id, request(PROMPTS[id], max_tokens=max_tokens, deterministic=False))
    moved = results(work_off(engine))
    for id, max_tokens in lengths.items():
        engine.submit(id, request(PROMPTS[id], max_tokens=max_tokens))
        assert moved[id].text == results(work_off(engine))[id].text


def test_cancelled_request_gives_no_event_and_its_sequence_back(engine: Engine) -> None:
    for id in range(6):
        engine.submit(id, request(PROMPTS[id], max_tokens=200, deterministic=False))
    work_off(engine, until=lambda event: isinstance(event, Token) and event.id == 1)
    for id in (1, 5):  # one on its way, one waiting
        engine.cancel(id)
    later = work_off(engine)
    assert {event.id for event in later} == {0, 2, 3, 4}
    assert sorted(results(later)) == [0, 2, 3, 4]


def test_time_out_does_not_count_the_wait_for_a_sequence(smollm: Path) -> None:
    engine = make_engine(smollm, 512, 1)
    engine.submit(1, request("Write a long story.", max_tokens=300, timeout_s=0.3))
    engine.submit(2, request("Hi", max_tokens=1, timeout_s=0.3))
    events = work_off(engine)
    (failed,) = (event for event in events if isinstance(event, Failed))
    assert (failed.id, type(failed.error)) == (1, GenerationTimeout)
    assert sorted(results(events)) == [2]


def test_logit_bias_forbids_and_forces_tokens(engine: Engine) -> None:
    question, system = "What is the capital of France?", "Be brief."
    engine.submit(1, request(question, system))
    engine.submit(2, request(question, system, logit_bias=((" Paris", -100.0), ("Paris", -100.0))))
    engine.submit(3, request(question, system, max_tokens=3, logit_bias=((" no", 100.0),)))
    found = results(work_off(engine))
    assert "Paris" in found[1].text
    assert "Paris" not in found[2].text
    assert found[3].text == "no no no"


def test_logit_bias_forbids_special_tokens_too(engine: Engine) -> None:
    """Those that end an answer of this model."""
    ends = ("<|im_end|>", "<|endoftext|>", "<reponame>")
    question, system = "What is the capital of France?", "Be brief."
    engine.submit(1, request(question, system, max_tokens=60))
    engine.submit(2, request(question, system, max_tokens=60, logit_bias=tuple((end, -100.0) for end in ends)))
    found = results(work_off(engine))
    assert found[1].finish_reason == "stop"
    assert (found[2].finish_reason, found[2].completion_tokens) == ("length", 60)


def test_prompts_longer_than_a_decode_call_are_prefilled_beside_running_answers(smollm: Path) -> None:
    engine = make_engine(smollm, 1536, 2)
    engine.submit(1, request("Write a long story.", max_tokens=40, deterministic=False))
    work_off(engine, until=lambda event: isinstance(event, Token))
    engine.submit(2, request("word " * 1100, max_tokens=2, deterministic=False))
    events = [event for event in work_off(engine) if not isinstance(event, Started)]
    first_of_long = next(at for at, event in enumerate(events) if event.id == 2)
    assert [event.id for event in events[:first_of_long]] == [1] * max(2, first_of_long), "one token a step"


def test_timings_of_an_answer_count_its_own_tokens(engine: Engine) -> None:
    engine.submit(1, request("Write a long story.", max_tokens=20))
    result = results(work_off(engine))[1]
    assert result.tpot_s is not None
    total_s = result.ttft_s + result.tpot_s * 19
    assert result.tokens_per_s == pytest.approx(20 / total_s, rel=0.05)


REWRITE = """Correct the mistakes in this text and write it again:

The baker had seven horses and he keep them in a long stable by the river. Every morning he got up before the sun, lit \
the oven, and brought each of them a warm loaf of bread."""
ANIMALS = "Write a list of ten animals, each with its sound."


def answered(engine: Engine, question: str, **sampling: object) -> GenerateResult:
    engine.submit(1, request(question, **{"max_tokens": 40, **sampling}))  # type: ignore[arg-type]
    return results(work_off(engine))[1]


def both_ways(engine: Engine, question: str, **sampling: object) -> tuple[GenerateResult, GenerateResult]:
    """Without guesses and with, each alone, so that nothing but the guesses can make a difference.

    Up to 256 tokens of context llama.cpp's flash attention rounds alike for one token and for several.
    """
    alone = {"deterministic": True, **sampling}
    return tuple(answered(engine, question, prompt_lookup=lookup, **alone) for lookup in (False, True))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "seed": 3}, {"stop": ["lit the"]}, {"max_tokens": 23}], ids=str
)
def test_answer_that_is_guessed_from_its_prompt_is_the_same(engine: Engine, sampling: dict[str, object]) -> None:
    plain, guessed = both_ways(engine, REWRITE, **sampling)
    assert (guessed.tokens, guessed.text, guessed.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
    assert plain.drafted_tokens == 0
    assert guessed.accepted_tokens


def test_wrong_guesses_leave_nothing_in_the_cache(engine: Engine) -> None:
    plain, guessed = both_ways(engine, ANIMALS, max_tokens=120)
    assert 0 < guessed.accepted_tokens < guessed.drafted_tokens  # type: ignore[operator]
    assert guessed.tokens == plain.tokens


def test_context_is_used_to_its_last_token_with_guesses_too(smollm: Path) -> None:
    """256 tokens are what llama.cpp has room for too: a guess beyond them could not be decoded."""
    plain, guessed = both_ways(make_engine(smollm, 256, 1), ANIMALS, max_tokens=999)
    assert guessed.finish_reason == plain.finish_reason == "length"
    assert guessed.prompt_tokens + guessed.completion_tokens == 257  # type: ignore[operator]  # the last is not decoded
    assert guessed.tokens == plain.tokens
    assert guessed.accepted_tokens


@pytest.mark.parametrize(
    ("sampling", "guesses"),
    [({"deterministic": False}, True), ({}, False), ({"prompt_lookup": True}, True)],
    ids=str,
)
def test_deterministic_answer_is_guessed_only_where_that_is_asked_for(
    engine: Engine, sampling: dict[str, object], guesses: bool
) -> None:
    assert (answered(engine, REWRITE, **sampling).drafted_tokens != 0) == guesses


def test_nothing_is_guessed_in_company(engine: Engine) -> None:
    for id in range(2):
        engine.submit(id, request(REWRITE, max_tokens=30, deterministic=False))
    assert [result.drafted_tokens for result in results(work_off(engine)).values()] == [0, 0]


def test_nothing_is_guessed_where_no_token_can_be_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.llama, "can_take_back", False)
    assert answered(engine, REWRITE, prompt_lookup=True).drafted_tokens == 0
