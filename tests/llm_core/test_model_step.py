"""Figures of several steps together."""

from datetime import UTC, datetime, timedelta

from llm_core.call_params import MAX_SEED, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.model_step import of_item, throughput
from llm_core.session_records import StepRecord

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def step(start_s: float, end_s: float, n_tokens: int | None) -> StepRecord:
    started, ended = NOON + timedelta(seconds=start_s), NOON + timedelta(seconds=end_s)
    return StepRecord(
        id="1 a: a", number=1, stage="a", text="", started=started, ended=ended, completion_tokens=n_tokens
    )


def test_time_in_which_several_models_are_at_work_counts_once() -> None:
    assert throughput([step(0, 4, 30), step(2, 6, 30)]) == 60 / 6


def test_answer_within_another_adds_its_tokens_and_no_time() -> None:
    assert throughput([step(0, 10, 10), step(2, 3, 10)]) == 20 / 10


def test_time_in_which_nobody_answers_does_not_count() -> None:
    assert throughput([step(0, 1, 10), step(100, 101, 10)]) == 20 / 2


def test_steps_without_a_model_count_neither_way() -> None:
    assert throughput([step(0, 2, 10), step(2, 50, None)]) == 10 / 2
    assert throughput([step(0, 2, None)]) is None


def asked(seed: int | None) -> GenerateRequest:
    return GenerateRequest((("user", "Why?"),), SamplingParams(seed=seed))


def test_each_item_of_a_dataset_draws_with_a_seed_of_its_own() -> None:
    assert [of_item(item, asked(7)).sampling.seed for item in (1, 2, 3)] == [7, 1_000_010, 2_000_013]
    assert of_item(2, asked(MAX_SEED)).sampling.seed == 1_000_002, "seeds begin anew after the last"
    assert of_item(2, asked(None)).sampling.seed is None
