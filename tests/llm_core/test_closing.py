"""An answer that was cut off anywhere gets the same valid end each time."""

import json
from typing import Any

import pytest

from llm_core.closing import closed
from llm_core.errors import ConstraintError
from llm_core.grammar_text import text_grammar
from llm_core.pattern_example import pattern_example
from llm_core.schema_grammar import schema_grammar

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 18},
        "role": {"enum": ["cook", "captain"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age", "role"],
    "additionalProperties": False,
}
TREE: dict[str, Any] = {
    "$ref": "#/$defs/tree",
    "$defs": {
        "leaf": {
            "type": "object",
            "properties": {"kind": {"const": "leaf"}},
            "required": ["kind"],
            "additionalProperties": False,
        },
        "both": {
            "type": "object",
            "properties": {
                "kind": {"const": "both"},
                "left": {"$ref": "#/$defs/tree"},
                "right": {"$ref": "#/$defs/tree"},
            },
            "required": ["kind", "left", "right"],
            "additionalProperties": False,
        },
        "tree": {"anyOf": [{"$ref": "#/$defs/both"}, {"$ref": "#/$defs/leaf"}]},
    },
}
LEAF = '{"kind": "leaf"}'


@pytest.mark.parametrize(
    ("schema", "cut", "whole"),
    [
        (PERSON, "", '{"name": "", "age": 100, "role": "captain"}'),
        (PERSON, '{"na', '{"name": "", "age": 100, "role": "captain"}'),
        (PERSON, '{"name": "A\\', '{"name": "A\\"", "age": 100, "role": "captain"}'),
        (PERSON, '{"name": "A", "age": 2', '{"name": "A", "age": 20, "role": "captain"}'),
        (PERSON, '{"name": "A", "age": 20, "role": "co', '{"name": "A", "age": 20, "role": "cook"}'),
        (
            PERSON,
            '{"name": "A", "age": 20, "role": "cook", "tags": ["a", ',
            '{"name": "A", "age": 20, "role": "cook", "tags": ["a", ""]}',
        ),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, "[7", "[7, 0, 0]"),
        ({"type": "number"}, "-", "-9"),
        ({"type": "number", "minimum": 0.5, "maximum": 2}, "1.", "1.0"),
        ({"type": "integer", "multipleOf": 7, "minimum": 8}, "1", None),
        ({"type": "string", "pattern": r"^[A-Z]{3}-\d{4}$"}, '"AB', '"ABA-0000"'),
        ({"type": "string", "pattern": r"\.(pdf|txt)$"}, '"my file', '"my file.pdf"'),
        ({"type": "string", "pattern": r"^[^@ ]+@[a-z]+\.(com|org)$"}, '"me@home', '"me@home.com"'),
        ({"type": "string", "format": "email"}, '"', '"a@a.aa"'),
        ({"type": "string", "minLength": 5}, '"ab', '"ab000"'),
        (TREE, '{"kind": "both", "left": {"kind": "le', None),
        ({"type": "object", "minProperties": 1}, "{", '{"": ""}'),
    ],
)
def test_cut_off_json_is_completed_to_what_its_schema_allows(schema: Any, cut: str, whole: str | None) -> None:
    found = closed(schema_grammar(schema), cut.encode()).decode()
    json.loads(found)
    assert found.startswith(cut)
    assert whole is None or found == whole
    assert closed(schema_grammar(schema), cut.encode()).decode() == found


def test_branch_that_never_ends_is_left_for_one_that_does() -> None:
    assert closed(schema_grammar(TREE), b'{"kind": "both", "left": {"kind": "l').decode() == (
        f'{{"kind": "both", "left": {LEAF}, "right": {LEAF}}}'
    )


def test_letter_that_was_cut_in_two_is_completed() -> None:
    found = closed(schema_grammar({"type": "string"}), b'"caf\xc3').decode()
    assert found.startswith('"caf')
    assert len(json.loads(found)) == 4


def test_whole_answer_stays_as_it_is() -> None:
    assert closed(schema_grammar({"type": "integer"}), b"12") == b"12"


def test_text_of_a_grammar_is_completed_too() -> None:
    assert closed(text_grammar('root ::= "yes" | "no, " [a-z]+ "."'), b"no, n") == b"no, n."
    assert closed(text_grammar('start: /[^.]+/ "."'), b'a "quoted').endswith(b".")


def test_what_does_not_begin_an_answer_is_an_error() -> None:
    with pytest.raises(ConstraintError, match="the cut-off answer breaks its grammar"):
        closed(schema_grammar(PERSON), b'{"nome')


def test_schema_without_an_end_is_an_error_and_no_endless_search() -> None:
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    with pytest.raises(ConstraintError, match="no end of it was found"):
        closed(schema_grammar(endless), b"")


@pytest.mark.parametrize(
    ("pattern", "example"),
    [
        (r"^[A-Z]{3}-\d{4}$", "AAA-0000"),
        (r"\.(pdf|txt)$", ".pdf"),
        (r"^a+b*?c[^a]$", "acb"),
        (r"(yes|no)?\s", " "),
        (r"^.\w[-x]$", "aa-"),
        (r"(?P<a>x)(?P=a)", None),
        (r"[", None),
    ],
)
def test_example_of_a_pattern(pattern: str, example: str | None) -> None:
    assert pattern_example(pattern) == example
