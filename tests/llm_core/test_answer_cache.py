"""Which calls are the same, and what becomes of entries whose answer has gone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llm_core.answer_cache import AnswerCache
from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.session import Session
from llm_core.session_history import delete_session
from llm_core.session_records import StepRecord
from llm_core.step_log import ItemStep, StepLog
from tests.llm_core.tiny_gguf import write_tiny_gguf

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
KEY = "ab" * 32


@pytest.fixture
def answers(tmp_path: Path) -> AnswerCache:
    return AnswerCache(tmp_path / "sessions", tmp_path / "cache")


@pytest.fixture
def load(tmp_path: Path) -> LoadParams:
    return LoadParams(str(write_tiny_gguf(tmp_path / "a.gguf", few=[1])), n_ctx=512)


def request(**sampling: Any) -> GenerateRequest:
    return GenerateRequest((("user", "Why?"),), SamplingParams(**{"temperature": 0.5, "seed": 7} | sampling), threads=2)


def test_same_call_has_the_same_key_wherever_its_file_lies(
    answers: AnswerCache, load: LoadParams, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other.gguf"
    elsewhere.write_bytes(Path(load.path).read_bytes())
    key = answers.key(load, request())
    assert key is not None
    assert answers.key(replace(load, path=str(elsewhere), sequences=4), request(timeout_s=9.0)) == key


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.6}, {"seed": 8}, {"top_k": 3}, {"max_tokens": 5}, {"stop": ("\n",)}, {"deterministic": True}],
)
def test_every_parameter_counts(answers: AnswerCache, load: LoadParams, sampling: dict[str, Any]) -> None:
    assert answers.key(load, request(**sampling)) != answers.key(load, request())


def test_prompt_file_context_and_build_count(
    answers: AnswerCache, load: LoadParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_file = write_tiny_gguf(tmp_path / "b.gguf", few=[2])
    keys = [
        answers.key(load, request()),
        answers.key(load, replace(request(), messages=(("system", "Be kind."), ("user", "Why?")))),
        answers.key(load, replace(request(), strip_reasoning=True)),
        answers.key(replace(load, path=str(other_file)), request()),
        answers.key(replace(load, n_ctx=1024), request()),
        answers.key(replace(load, kv_type="q8_0"), request()),
    ]
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", "/opt/another-build")
    keys.append(answers.key(load, request()))
    assert len(set(keys)) == 7


def test_threads_count_where_an_answer_is_decoded_alone(answers: AnswerCache, load: LoadParams) -> None:
    alone = request(temperature=0)
    assert answers.key(load, replace(alone, threads=1)) != answers.key(load, alone)
    assert answers.key(load, replace(request(), threads=1)) == answers.key(load, request())


def test_seed_means_nothing_at_temperature_0(answers: AnswerCache, load: LoadParams) -> None:
    assert answers.key(load, request(temperature=0, seed=None)) == answers.key(load, request(temperature=0, seed=3))


def test_answer_that_is_drawn_anew_has_no_key(answers: AnswerCache, load: LoadParams) -> None:
    assert answers.key(load, request(seed=None)) is None


def test_model_that_cannot_be_read_has_no_key(answers: AnswerCache, load: LoadParams) -> None:
    assert answers.key(replace(load, path="gone.gguf"), request()) is None


def test_template_that_writes_the_date_makes_another_key_each_day(
    answers: AnswerCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date.today() + timedelta(days=1)

    path = write_tiny_gguf(tmp_path / "c.gguf", **{"tokenizer.chat_template": "{{ strftime_now('%d %b') }}"})
    today = answers.key(LoadParams(str(path), 512), request())
    monkeypatch.setattr("llm_core.answer_cache.date", Tomorrow)
    assert answers.key(LoadParams(str(path), 512), request()) != today


def step(text: str, key: str | None = KEY) -> StepRecord:
    return StepRecord(id="1 a: a", number=1, stage="a", text=text, cache_key=key, started=NOON, ended=NOON)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session.create(tmp_path / "sessions", pipeline="base", question="Why?", execution_mode="auto", snapshot={})


def test_answer_is_found_in_its_session(answers: AnswerCache, session: Session) -> None:
    assert answers.find(KEY) is None
    session.add(step("So."), "step1.json")
    answers.keep(KEY, session.path / "step1.json")
    assert answers.find(KEY) == ("session_001", step("So."))


def test_answer_is_found_among_those_of_a_dataset(answers: AnswerCache, session: Session) -> None:
    log = StepLog(session.path / "step1.jsonl")
    for item, text in enumerate(("one", "two", "three")):
        lines = log.add(ItemStep(item=item, **step(text).model_dump()))
        if text == "two":
            answers.keep(KEY, log.path, lines)
    found = answers.find(KEY)
    assert found
    assert found[1].text == "two"


def test_entry_goes_when_its_session_was_deleted(answers: AnswerCache, session: Session, tmp_path: Path) -> None:
    session.add(step("So."), "step1.json")
    session.complete("So.")
    answers.keep(KEY, session.path / "step1.json")
    delete_session(tmp_path / "sessions", "session_001")
    assert answers.find(KEY) is None
    assert [path for path in (tmp_path / "sessions").rglob("*") if path.is_file()] == []


def test_answer_with_another_key_is_not_taken(answers: AnswerCache, session: Session) -> None:
    """The number of a deleted session may have been taken again."""
    session.add(step("Something else.", key="cd" * 32), "step1.json")
    answers.keep(KEY, session.path / "step1.json")
    assert answers.find(KEY) is None


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "{",
        '{"session": "../outside", "file": "step1.json"}',
        '{"session": "session_001", "file": "../../outside/step1.json"}',
    ],
)
def test_damaged_or_tricky_entry_finds_nothing(
    answers: AnswerCache, session: Session, tmp_path: Path, entry: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "step1.json").write_text(step("Secret.").model_dump_json())
    answers.keep(KEY, session.path / "step1.json")
    path = tmp_path / "sessions" / ".answers" / "ab" / f"{KEY}.json"
    path.write_text(entry)
    assert answers.find(KEY) is None
    assert not path.exists()


def test_answer_is_found_while_another_run_takes_it_over(answers: AnswerCache, session: Session) -> None:
    session.add(step("So."), "step1.json")
    answers.keep(KEY, session.path / "step1.json")

    def take_over() -> None:
        for _ in range(300):
            answers.keep(KEY, session.path / "step1.json")

    with ThreadPoolExecutor(1) as other:
        taking = other.submit(take_over)
        while not taking.done():
            assert answers.find(KEY)


def test_entries_that_cannot_be_written_cost_no_run(answers: AnswerCache, session: Session) -> None:
    (session.path.parent / ".answers").write_text("in the way")
    answers.keep(KEY, session.path / "step1.json")
    assert answers.find(KEY) is None
