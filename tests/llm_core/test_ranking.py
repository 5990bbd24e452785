"""Rankings and judgements, on tables worked by hand."""

import pytest

from llm_core.errors import AggregationError
from llm_core.grammar_text import text_grammar
from llm_core.ranking import (
    JUDGE_INSTRUCTIONS,
    RANKING_INSTRUCTIONS,
    ballot,
    borda,
    judge_grammar,
    judge_message,
    judged,
    ranking_grammar,
    ranking_message,
    read_ranking,
)

THREE = {"a": "one", "b": "two", "c": "three"}
FOUR = THREE | {"d": "four"}


def test_ballot_leaves_out_its_ranker_and_begins_with_another_member_each_time() -> None:
    assert ballot(list(FOUR), "a") == {"A": "b", "B": "c", "C": "d"}
    assert ballot(list(FOUR), "b") == {"A": "c", "B": "d", "C": "a"}
    assert ballot(list(FOUR), "d") == {"A": "a", "B": "b", "C": "c"}


def test_ranker_sees_letters_and_no_names() -> None:
    assert ranking_message("Why?", {"A": "one", "B": "two"}) == (
        f"{RANKING_INSTRUCTIONS}\n\nQuestion:\nWhy?\n\nAnswer A:\none\n\nAnswer B:\ntwo\n\nRanking:"
    )


@pytest.mark.parametrize(
    ("reply", "ranking"),
    [
        ("B > A > C", "BAC"),
        ("My ranking: C>B>A.", "CBA"),
        ("B, A, C", "BAC"),
        ("A is a good answer. I say\nC > A > B\nbecause it is clear.", "CAB"),
        ("B > A", "BA"),
        ("B > B > A", "BA"),
        ("B > X > A", "BA"),
        ("First A > B > C, but on reflection C > B > A", "CBA"),
        ("A", ""),
        ("I like them all.", ""),
        ("", ""),
    ],
)
def test_ranking_is_read_from_a_reply(reply: str, ranking: str) -> None:
    assert "".join(read_ranking(reply, ["A", "B", "C"])) == ranking


def test_grammars_allow_what_can_be_read_and_nothing_else() -> None:
    assert ranking_grammar(["A", "B"]) == 'start: "A > B" | "B > A"'
    assert ranking_grammar(list("ABCD")).count("|") == 23
    assert ranking_grammar(list("ABCDE")) == (
        'start: LETTER " > " LETTER " > " LETTER " > " LETTER " > " LETTER\nLETTER: /[A-E]/'
    )
    assert judge_grammar(3) == 'start: "1" | "2" | "3"'
    for grammar in (ranking_grammar(list("ABCD")), ranking_grammar(list("ABCDE")), judge_grammar(12)):
        text_grammar(grammar)


@pytest.mark.parametrize(
    ("answers", "rankings", "winner", "points", "agreed"),
    [
        # b: 1 of a, 1 of c; a: 1 of b, 0 of c; c: 0 and 0.
        (THREE, {"a": "bc", "b": "ac", "c": "ba"}, "b", {"a": 0.5, "b": 1.0, "c": 0.0}, ("a", "c")),
        # Everyone is first once and second once: a tie, and the first of the stage.
        (THREE, {"a": "bc", "b": "ca", "c": "ab"}, "a", {"a": 0.5, "b": 0.5, "c": 0.5}, ("c",)),
        # a: 2, 2, 0; b: 2, 1, 2; c: 1, 0, 1; d: 0, 1, 0.
        (
            FOUR,
            {"a": "bcd", "b": "adc", "c": "abd", "d": "bca"},
            "b",
            {"a": 4 / 3, "b": 5 / 3, "c": 2 / 3, "d": 1 / 3},
            ("a", "d"),
        ),
        # The ballot of a names b alone: c and d share 1 and 0.
        (FOUR, {"a": "b", "b": "", "c": "", "d": ""}, "b", {"b": 2.0, "c": 0.5, "d": 0.5}, ("a",)),
    ],
)
def test_borda_counts_places_and_the_first_wins_a_tie(
    answers: dict[str, str], rankings: dict[str, str], winner: str, points: dict[str, float], agreed: tuple[str, ...]
) -> None:
    merged = borda(answers, rankings)
    assert (merged.text, merged.agreed) == (answers[winner], agreed)
    assert merged.evidence["points"] == pytest.approx(points)


def test_no_ranking_at_all_is_an_error() -> None:
    with pytest.raises(AggregationError, match="no member gave a ranking that can be read"):
        borda(THREE, dict.fromkeys(THREE, ""))


def test_judge_sees_numbers_and_no_names() -> None:
    assert judge_message("Why?", {"x": "one", "y": "two"}) == (
        f"{JUDGE_INSTRUCTIONS}\n\nQuestion:\nWhy?\n\nAnswer 1:\none\n\nAnswer 2:\ntwo\n\nThe best answer is number"
    )


@pytest.mark.parametrize("reply", ["2", " 2.", "**2**", "Answer 2 is better than 1", "number 2", "I say 2."])
def test_judges_number_chooses(reply: str) -> None:
    merged = judged(THREE, reply)
    assert (merged.text, merged.agreed) == ("two", ("b",))
    assert merged.evidence == {"chosen": "b", "reply": reply}


@pytest.mark.parametrize("reply", ["", "none of them", "4", "Between 1 and 2 I cannot choose"])
def test_judge_who_names_no_one_answer_is_an_error_with_its_words(reply: str) -> None:
    with pytest.raises(AggregationError, match="the judge names no one answer of 3: '"):
        judged(THREE, reply)


def test_those_who_said_the_same_as_the_chosen_agreed() -> None:
    assert judged({"a": "Paris", "b": "Lyon", "c": "paris."}, "1").agreed == ("a", "c")
