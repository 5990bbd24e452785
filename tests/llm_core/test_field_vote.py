"""Objects merged field by field, on tables worked by hand."""

import json
from math import exp, log
from typing import Any

import pytest

from llm_core.errors import AggregationError
from llm_core.field_vote import Ballot, Field, field_vote, fields

ANY = '{"type": "object"}'


def ballot(text: str, *tokens: tuple[str, float]) -> Ballot:
    """Of a text whose tokens have these probabilities."""
    ends, at = [], 0
    for token, probability in tokens:
        at += len(token.encode())
        ends.append((at, log(probability)))
    assert not tokens or "".join(token for token, _ in tokens) == text
    return Ballot(text, ends)


def sure(text: str, probability: float) -> Ballot:
    """Every byte a token of the same probability."""
    return Ballot(text, [(n + 1, log(probability)) for n in range(len(text.encode()))])


def test_field_weighs_the_geometric_mean_of_its_own_tokens() -> None:
    text = '{"a": "é b", "n": 12}'
    found = fields(ballot(text, ('{"a": "', 0.1), ("é", 0.5), (' b"', 0.5), (', "n":', 0.1), (" 1", 0.9), ("2}", 0.4)))
    assert found == {
        ("a",): Field('"é b"', pytest.approx((0.1 * 0.5 * 0.5) ** (1 / 3))),  # type: ignore[arg-type]
        ("n",): Field("12", pytest.approx((0.9 * 0.4) ** (1 / 2))),  # type: ignore[arg-type]
    }


def test_fields_within_objects_are_fields_and_lists_are_values() -> None:
    found = fields(Ballot('{"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": {"g": {"h": null}}}', []))
    assert {path: field.value for path, field in found.items()} == {
        ("a", "b"): "1",
        ("a", "c"): "{}",
        ("d",): '[1, {"e": 2}]',
        ("f", "g", "h"): "null",
    }


def test_what_was_added_without_a_model_weighs_nothing() -> None:
    """The end of an answer that was cut off."""
    found = fields(Ballot('{"a": 1, "b": 2}', [(7, log(0.5))]))
    assert (found[("a",)].weight, found[("b",)].weight) == (pytest.approx(0.5), 0.0)


@pytest.mark.parametrize(
    ("members", "merged", "weights"),
    [
        # Two who are half sure against one who is sure: 1.0 to 0.9.
        ([('{"x": 1}', 0.5), ('{"x": 1}', 0.5), ('{"x": 2}', 0.9)], {"x": 1}, {"x": {"1": 1.0, "2": 0.9}}),
        # And where they are less sure than that, the one wins.
        ([('{"x": 1}', 0.4), ('{"x": 1}', 0.4), ('{"x": 2}', 0.9)], {"x": 2}, {"x": {"1": 0.8, "2": 0.9}}),
        # A tie: the first.
        ([('{"x": 2}', 0.5), ('{"x": 1}', 0.5)], {"x": 2}, {"x": {"2": 0.5, "1": 0.5}}),
        # Each field by itself: nobody said all of what comes out.
        (
            [('{"x": 1, "y": 1}', 0.5), ('{"x": 1, "y": 2}', 0.5), ('{"x": 3, "y": 2}', 0.5)],
            {"x": 1, "y": 2},
            {"x": {"1": 1.0, "3": 0.5}, "y": {"1": 0.5, "2": 1.0}},
        ),
        # Left out by two of three.
        (
            [('{"x": 1, "y": 1}', 0.5), ('{"x": 1}', 0.5), ('{"x": 1}', 0.5)],
            {"x": 1},
            {"x": {"1": 1.5}, "y": {"1": 0.5, "(absent)": 1.0}},
        ),
        # Keys in another order, and 1.0 for 1: lists are equal by their values.
        ([('{"x": [{"b": 1, "a": 2}]}', 0.5), ('{"x": [{"a": 2, "b": 1}]}', 0.5)], {"x": [{"a": 2, "b": 1}]}, None),
    ],
)
def test_each_field_goes_to_the_value_that_weighs_most(
    members: list[tuple[str, float]], merged: dict[str, Any], weights: dict[str, dict[str, float]] | None
) -> None:
    made = field_vote({f"m{n}": sure(*member) for n, member in enumerate(members)}, ANY)
    assert json.loads(made.text) == merged
    if weights:
        assert made.evidence == {"fields": weights}


def test_members_who_said_all_of_it_agreed() -> None:
    ballots = {
        "a": sure('{"x": 1, "y": 1}', 0.5),
        "b": sure('{"y": 1, "x": 1}', 0.5),
        "c": sure('{"x": 1, "y": 2}', 0.4),
    }
    assert field_vote(ballots, ANY).agreed == ("a", "b")


def test_fields_that_do_not_go_together_give_way_to_one_members_object() -> None:
    """x goes to 1 and y to 2, which the schema forbids; a's fields weigh 0.9 + 0.1, b's 0.5 + 0.6."""
    schema = '{"anyOf": [{"properties": {"x": {"const": 1}, "y": {"const": 1}}}, {"properties": {"x": {"const": 2}}}]}'
    made = field_vote(
        {
            "a": ballot('{"x": 1, "y": 1}', ('{"x": 1', 0.9), (', "y": 1}', 0.1)),
            "b": ballot('{"x": 2, "y": 2}', ('{"x": 2', 0.5), (', "y": 2}', 0.6)),
        },
        schema,
    )
    assert (made.text, made.agreed) == ('{"x": 2, "y": 2}', ("b",))
    assert made.evidence == {
        "fields": {"x": {"1": 0.9, "2": 0.5}, "y": {"1": 0.1, "2": 0.6}},
        "taken_whole_from": "b",
    }


@pytest.mark.parametrize("text", ["[1]", "7", "so", ""])
def test_what_is_no_object_is_one_line(text: str) -> None:
    with pytest.raises(AggregationError, match="field_vote takes JSON objects, not '"):
        field_vote({"a": Ballot(text, [])}, ANY)


def test_weight_is_a_probability() -> None:
    assert fields(sure('{"x": 1}', exp(-0.25)))[("x",)].weight == pytest.approx(exp(-0.25))
