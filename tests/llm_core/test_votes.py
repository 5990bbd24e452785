"""Votes and similarity, on tables worked by hand."""

import pytest

from llm_core.votes import majority_vote, most_similar, normalised, voted


@pytest.mark.parametrize(
    ("written", "counted"),
    [
        ("Paris.", "paris"),
        ("  **PARIS!** ", "paris"),
        ("The   answer\n\tis", "the answer is"),
        ('"Straße"', "strasse"),
        ("Ｐａｒｉｓ", "paris"),  # full-width letters
        ("cafe\u0301", "café"),  # e and a combining accent
        ("3.14", "3.14"),
        ("-5", "-5"),
        ("1,234.50", "1234.5"),
        ("+42.0", "42"),
        ("1e5", "1e5"),
        ("1,2", "1,2"),
        ("it's", "it's"),
        ("…!?", ""),
        ("", ""),
    ],
)
def test_answers_that_differ_in_form_only_count_as_one(written: str, counted: str) -> None:
    assert normalised(written) == counted


@pytest.mark.parametrize(
    ("text", "pattern", "vote"),
    [
        ("So it is 7.\n#### 42.0", r"#### *(.+)", "42"),
        ("7, no, 8", r"\d+", "8"),
        ("I do not know.", r"\d+", ""),
        ("a or b", r"(a)|(b)", ""),
    ],
)
def test_pattern_finds_the_vote_in_an_answer(text: str, pattern: str, vote: str) -> None:
    assert voted(text, pattern) == vote


@pytest.mark.parametrize(
    ("votes", "winner", "counts"),
    [
        (["Paris"], "Paris", {"paris": 1}),
        (["Lyon", "Paris", "paris."], "Paris", {"lyon": 1, "paris": 2}),
        (["Lyon", "Paris", "Nice"], "Lyon", {"lyon": 1, "paris": 1, "nice": 1}),
        (["Nice", "Paris", "Lyon", "lyon", "PARIS"], "Paris", {"nice": 1, "paris": 2, "lyon": 2}),
        (["4.", " 4", "Four"], "4.", {"4": 2, "four": 1}),
        (["", "", "So"], "So", {"so": 1}),
        (["", ""], "", {"": 2}),
    ],
)
def test_majority_wins_and_the_first_named_wins_a_tie(votes: list[str], winner: str, counts: dict[str, int]) -> None:
    merged = majority_vote({f"member{n}": vote for n, vote in enumerate(votes)})
    assert (merged.text, merged.evidence) == (winner, {"counts": counts})


def test_members_who_said_the_same_are_named() -> None:
    assert majority_vote({"a": "Paris", "b": "Lyon", "c": "paris!"}).agreed == ("a", "c")


@pytest.mark.parametrize(
    ("weights", "winner", "counts"),
    [
        ({}, "x", {"x": 2, "y": 1}),
        ({"c": 3}, "y", {"x": 2, "y": 3}),
        ({"c": 2}, "x", {"x": 2, "y": 2}),  # a tie: x was said first
        ({"a": 0, "b": 0}, "y", {"x": 0, "y": 1}),
        ({"a": 0.5, "b": 0.25}, "y", {"x": 0.75, "y": 1}),
    ],
)
def test_vote_counts_as_much_as_its_member_weighs(
    weights: dict[str, float], winner: str, counts: dict[str, float]
) -> None:
    merged = majority_vote({"a": "x", "b": "x", "c": "y"}, weights=weights)
    assert (merged.text, merged.evidence["counts"]) == (winner, counts)


def test_vote_by_pattern_gives_the_whole_answer_of_its_first_voter() -> None:
    answers = {"a": "2 + 2 = 5", "b": "Two and two is 4", "c": "It is 4.0"}
    merged = majority_vote(answers, r"\d+(?:\.\d+)?")
    assert (merged.text, merged.agreed) == ("Two and two is 4", ("b", "c"))


@pytest.mark.parametrize(
    ("answers", "chosen", "scores", "agreed"),
    [
        # abcd-abcf: 1 of 4 letters differs, 0.75; abcd-wxyz: 0; abcf-wxyz: 0. A tie, so the first.
        ({"a": "abcd", "b": "abcf", "c": "wxyz"}, "a", {"a": 0.375, "b": 0.375, "c": 0.0}, ("a",)),
        # abcdefghij: to ..X 0.9, to ..Y 0.9; X to Y: 0.9 as well, but the one in the middle is like all others.
        (
            {"a": "abcdefghiX", "b": "abcdefghij", "c": "Zbcdefghij"},
            "b",
            {"a": 0.85, "b": 0.9, "c": 0.85},
            ("a", "b", "c"),
        ),
        ({"a": "", "b": "so", "c": ""}, "b", {"b": 1.0}, ("b",)),
        ({"a": "", "b": ""}, "a", {"a": 1.0, "b": 1.0}, ("a", "b")),
    ],
)
def test_answer_most_like_the_others_is_chosen(
    answers: dict[str, str], chosen: str, scores: dict[str, float], agreed: tuple[str, ...]
) -> None:
    merged = most_similar(answers)
    assert (merged.text, merged.evidence, merged.agreed) == (answers[chosen], {"similarity": scores}, agreed)
