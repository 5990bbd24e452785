"""A cascade's answers, asked for and counted until enough agree; on tables worked by hand."""

import pytest

from llm_core.cascade import StopRule, agreement, cascade

TEXTS = {"A": "It is 7.", "a": "it is 7", "B": "It is 8.", "C": "It is 9.", "-": "I do not know."}
NUMBER = r"\d+"


def asked_in_turn(would_say: str, rule: StopRule) -> tuple[list[str], dict[str, str]]:
    """Members m1, m2, …, one per letter, and the answers of those that a run would ask; `x` fails."""
    answers: dict[str, str] = {}
    for number, letter in enumerate(would_say, 1):
        if rule.is_met(answers.values()):
            break
        if letter != "x":
            answers[f"m{number}"] = TEXTS[letter]
    return [f"m{number}" for number in range(1, len(would_say) + 1)], answers


@pytest.mark.parametrize(
    ("would_say", "threshold", "at_least", "n_asked", "agreements", "winner"),
    [
        ("AAB", 0.6, 2, 2, [1, 1], "A"),
        ("AaB", 0.6, 2, 2, [1, 1], "A"),  # as a majority vote counts
        ("ABA", 0.6, 2, 3, [1, 0.5, 0.6667], "A"),
        ("ABCAAB", 0.6, 2, 5, [1, 0.5, 0.3333, 0.5, 0.6], "A"),  # 3 of 5 is 0.6, which is enough
        ("ABAAB", 0.75, 2, 4, [1, 0.5, 0.6667, 0.75], "A"),
        ("ABAA", 0.76, 2, 4, [1, 0.5, 0.6667, 0.75], "A"),  # nobody is left to ask
        ("ABAA", 1, 2, 4, [1, 0.5, 0.6667, 0.75], "A"),
        ("ABBA", 0.9, 2, 4, [1, 0.5, 0.6667, 0.5], "A"),  # a tie at the end goes to the first
        ("AB", 0.5, 2, 2, [1, 0.5], "A"),  # a tie that is enough
        ("BACCC", 0.5, 2, 2, [1, 0.5], "B"),
        ("AB", 0.6, 1, 1, [1], "A"),
        ("AABB", 0.6, 3, 3, [1, 1, 0.6667], "A"),
        ("xAAB", 0.6, 2, 3, [1, 1], "A"),
        ("AxaB", 0.6, 2, 3, [1, 1], "A"),
        ("ABx", 0.6, 2, 3, [1, 0.5], "A"),
        ("xxA", 0.6, 2, 3, [1], "A"),
        ("--AAB", 0.5, 2, 4, [0, 0, 0.3333, 0.5], "A"),  # no vote agrees with nobody
        ("-A", 0.6, 1, 2, [0, 0.5], "A"),
        ("---", 0.1, 2, 3, [0, 0, 0], "-"),
    ],
)
def test_next_member_is_asked_while_agreement_is_under_the_threshold(
    would_say: str, threshold: float, at_least: int, n_asked: int, agreements: list[float], winner: str
) -> None:
    rule = StopRule(threshold, at_least, NUMBER)
    members, answers = asked_in_turn(would_say, rule)
    merged = cascade(members, answers, rule)
    assert merged.evidence["asked"] == members[:n_asked]
    assert merged.evidence["not_asked"] == members[n_asked:]
    assert list(merged.evidence["agreement"].values()) == agreements
    assert list(merged.evidence["agreement"]) == list(answers)
    assert merged.text == TEXTS[winner]


def test_who_agreed_and_what_was_counted() -> None:
    answers = {"a": "Paris", "b": "Lyon", "c": "paris.", "d": "PARIS"}
    merged = cascade(["a", "b", "c", "d"], answers, StopRule(0.7, 2))
    assert (merged.text, merged.agreed) == ("Paris", ("a", "c", "d"))
    assert merged.evidence["counts"] == {"paris": 3, "lyon": 1}
    assert merged.evidence["agreement"] == {"a": 1, "b": 0.5, "c": 0.6667, "d": 0.75}


def test_answers_that_would_not_have_been_asked_for_are_not_counted() -> None:
    """As in a rerun of a stage whose members had all answered."""
    merged = cascade(["a", "b", "c"], {"a": "Paris", "b": "Paris", "c": "Lyon"}, StopRule(0.6, 2))
    assert merged.evidence["counts"] == {"paris": 2}
    assert merged.evidence["not_asked"] == ["c"]


def test_no_answer_is_no_agreement() -> None:
    assert agreement([]) == 0
    assert not StopRule(0.1, 1).is_met([])
