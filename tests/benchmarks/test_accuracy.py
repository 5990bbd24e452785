"""What the accuracy benchmark rests on: its questions, its rules, its intervals, and what it counts of a real run."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.accuracy import WAYS, Outcome, ask, ends_with_number, names_its_capital, shares
from tests.benchmarks.capitals import TRIED, capital_questions, names_capital
from tests.benchmarks.proportions import bootstrap_interval, wilson_interval
from tests.conftest import Project


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_that_of_newcombe_1998(n_right: int, n: int, low: float, high: float) -> None:
    """Statistics in Medicine 17, pp. 857-872, table I, method 3."""
    assert wilson_interval(n_right / n, n) == pytest.approx((low, high), abs=0.00005)


def test_bootstrap_interval_of_half_ones_is_the_normal_one() -> None:
    # The mean of 100 has a standard error of 0.5 / sqrt(100), of which 1.96 are 0.098; a mean is a multiple of 0.01.
    assert bootstrap_interval([0.0, 1.0] * 50) == pytest.approx((0.402, 0.598), abs=0.011)


def test_bootstrap_interval_of_equal_differences_has_no_width() -> None:
    assert bootstrap_interval([-0.25] * 40) == (-0.25, -0.25)


def test_questions_are_200_and_none_of_those_the_task_was_chosen_on() -> None:
    rows = capital_questions()
    asked = {row["question"] for row in rows}
    assert (len(rows), len(asked)) == (200, 200)
    tried = [entry.split(":")[0].strip() for entry in TRIED.split(";")]
    assert len(tried) == 30
    assert not asked & {f"What is the capital of {place}?" for place in tried}
    assert {"question": "What is the capital of the US state of Georgia?", "accepted": ["Atlanta"]} in rows
    assert {"question": "What is the capital of Ukraine?", "accepted": ["Kyiv", "Kiev"]} in rows


@pytest.mark.parametrize(
    ("answer", "accepted", "right"),
    [
        ("The capital is Kiev.", ["Kyiv", "Kiev"], True),
        ("The capital is Bogotá,", ["Bogota"], True),
        ("The capital is Port au Prince.", ["Port-au-Prince"], True),
        ("The capital is Nukuʻalofa.", ["Nuku'alofa"], True),
        ("The capital is Oklahoma.", ["Oklahoma City"], False),
        ("The capital is not Riga.", ["Riga"], False),
        ("The capital is Riga", ["Riga"], False),  # cut off
        ("The capital is ", ["Riga"], False),
        ("Riga.", ["Riga"], False),
        (None, ["Riga"], False),
    ],
)
def test_right_is_the_capital_and_nothing_else(answer: str | None, accepted: list[str], right: bool) -> None:
    assert names_capital(answer, accepted) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("He has 3 * 400 = 1,200 left.\n#### 1200", True),
        ("So it is $1,200.00.", True),
        ("It is 1200, which is 3 times 400.", False),
        ("-1200", False),
        ("It is twelve hundred.", False),
        (None, False),
    ],
)
def test_last_number_of_an_answer_counts(answer: str | None, right: bool) -> None:
    assert ends_with_number(answer, "1200") is right


def test_share_of_a_question_is_taken_over_the_rounds() -> None:
    rounds = [
        Outcome(right, n_calls=3, n_tokens=9, n_unanswered=0) for right in ((True, True, False), (True, False, False))
    ]
    assert shares(rounds) == [1.0, 0.5, 0.0]


@pytest.mark.usefixtures("prefect_server")
async def test_every_sample_of_a_real_run_is_counted(project: Project, smollm: Path) -> None:
    project.link_model(smollm, "small.gguf")
    project.models("models: {small: {file: small.gguf}}")
    project.pipeline(json.dumps({"base_pipeline": {"stages": [WAYS["self-consistency-5"]]}}))
    dataset = project.path / "capitals.jsonl"
    dataset.write_text("".join(json.dumps(row) + "\n" for row in capital_questions()[:3]))
    outcome = await ask(dataset, "base", names_its_capital, seed=1)
    assert (len(outcome.right), outcome.n_calls, outcome.n_unanswered) == (3, 15, 0)
    logged = [
        json.loads(line) for path in project.sessions.rglob("step1_*.jsonl") for line in path.read_text().splitlines()
    ]
    assert outcome.n_tokens == sum(record.get("completion_tokens", 0) for record in logged) > 15
