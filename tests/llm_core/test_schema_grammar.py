"""What of a JSON schema is enforced, and that all else is an error that names its place."""

import json
from typing import Any

import pytest

from llm_core.closing import byte_matcher
from llm_core.schema_grammar import schema_grammar


def accepts(schema: Any, text: str) -> bool:
    matcher = byte_matcher(schema_grammar(schema))
    taken = matcher.try_consume_tokens(list(text.encode()))
    return bool(taken == len(text.encode()) and matcher.is_accepting())


def in_property(schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "array", "items": schema}}}


UNENFORCED: dict[str, Any] = {
    "not": {"type": "string"},
    "if": {"type": "string"},
    "then": {},
    "else": {},
    "contains": {"type": "integer"},
    "minContains": 1,
    "uniqueItems": True,
    "propertyNames": {"pattern": "^a"},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {}},
    "dependencies": {"a": ["b"]},
    "unevaluatedProperties": False,
    "unevaluatedItems": False,
    "additionalItems": False,
    "contentEncoding": "base64",
    "contentMediaType": "text/html",
    "$id": "other.json",
    "$anchor": "here",
    "$dynamicRef": "#here",
    "$dynamicAnchor": "here",
}


@pytest.mark.parametrize("keyword", UNENFORCED)
def test_keyword_that_cannot_be_enforced_is_named_with_its_place(keyword: str) -> None:
    with pytest.raises(ValueError, match="cannot be enforced while an answer is written") as refusal:
        schema_grammar(in_property({keyword: UNENFORCED[keyword]}))
    assert str(refusal.value).startswith(f"properties.a.items.{keyword}: ")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"requird": ["a"]}, "requird: unknown keyword; did you mean 'required'?"),
        ({"x-guidance": {"lenient": True}}, "x-guidance: unknown keyword"),
        ({"$defs": {"d": {"nullable": True}}}, "$defs.d.nullable: unknown keyword"),
        ({"anyOf": [{}, {"type": "string", "format": "path"}]}, "anyOf[1]: Unknown format: path"),
        (in_property({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "properties.a.items: oneOf constraints"),
        (in_property({"pattern": "(?=a)b"}), "properties.a.items: regex parse error"),
        (in_property({"pattern": r"a\b"}), "properties.a.items: lookarounds not supported"),
        (in_property({"pattern": "["}), "properties.a.items.pattern: '[' is not a 'regex'"),
        (in_property({"pattern": "[[:alpha:]]"}), "properties.a.items.pattern: regular expression: Possible nested"),
        (in_property({"pattern": r"^\D$"}), r"properties.a.items.pattern: \D, \W and [^\d\w] are not the same"),
        ({"patternProperties": {r"[^\w]": {}}}, r"patternProperties.[^\w]: \D, \W"),
        ({"type": "wibble"}, "type: 'wibble' is not valid"),
        ({"items": [{}]}, "items: [{}] is not of type 'object', 'boolean'"),
        ({"exclusiveMinimum": True}, "exclusiveMinimum: True is not of type 'number'"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "$schema: 'http://json-schema.org/draft-04/schema#'"),
        ({"$ref": "other.json"}, "$ref: 'other.json' is not '#', '#/$defs/…' or '#/definitions/…'"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "$ref: '#/$defs/b' does not exist"),
        ({"$ref": "#/$defs/a/default", "$defs": {"a": {"default": {}}}}, "$ref: '#/$defs/a/default' is no schema"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$ref: '#/$defs/a' leads back to itself"),
        ({"minProperties": 3, "required": ["a"]}, "minProperties: cannot be enforced above the number of 'required'"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "Unsatisfiable schema: minimum (5) is greater than"),
        (False, "nothing satisfies it"),
        (3, "3 is not of type 'object', 'boolean'"),
    ],
)
def test_schema_that_cannot_be_enforced_is_one_line(schema: Any, message: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  the message is what is tested
        schema_grammar(schema)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


def test_annotations_and_older_drafts_are_no_error() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": "https://example.org/a.json",
        "title": "T",
        "description": "D",
        "examples": [1],
        "default": 1,
        "$comment": "C",
        "definitions": {"n": {"type": "integer"}},
        "$ref": "#/definitions/n",
    }
    assert accepts(schema, "12")
    assert not accepts(schema, '"a"')


@pytest.mark.parametrize(
    ("schema", "text", "accepted"),
    [
        ({"type": "integer"}, "9007199254740991", True),
        ({"type": "integer"}, "9007199254740992", False),
        ({"type": "number"}, "1e999", False),
        ({"type": "number"}, "-0.25", True),
        ({"type": "integer", "exclusiveMinimum": 1, "maximum": 3}, "1", False),
        ({"type": "integer", "exclusiveMinimum": 1, "maximum": 3}, "3", True),
        ({"type": "number", "exclusiveMaximum": 5}, "4.999999999999999", True),
        ({"type": "number", "exclusiveMaximum": 5}, "4.99999999999999999999", False),  # a float reads 5
        ({"type": "number", "exclusiveMinimum": 0}, "0.000000000000001", True),
        ({"type": "number", "exclusiveMinimum": 0}, "0.0000000000000001", False),
        ({"type": "number", "multipleOf": 0.1}, "0.3", True),
        ({"type": "number", "multipleOf": 0.1}, "0.35", False),
        ({"enum": [1e300, "a"]}, '"a"', True),
        ({"type": "string"}, '"a\nb"', False),
        ({"type": "string"}, '"a\\nb"', True),
        ({"type": "string", "maxLength": 1}, '"😀"', True),
        ({"type": "string", "maxLength": 1}, '"ab"', False),
        ({"type": "string", "pattern": "b"}, '"abc"', True),
        ({"type": "string", "pattern": "^b"}, '"abc"', False),
        ({"type": "string", "format": "date"}, '"2024-02-30"', False),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, "[1, 2]", True),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, "[]", False),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}, "[1, 2, 3]", False),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{"a": 1, "b": 2}', True),
        ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, '{"a": "x"}', False),
        ({"properties": {"a": {"type": "integer"}}}, '{"\\u0061": "x"}', False),  # "a" in other letters
    ],
)
def test_bounds_hold_for_every_text_that_gets_through(schema: Any, text: str, accepted: bool) -> None:
    if "properties" in schema:
        schema = {"type": "object", **schema}
    assert accepts(schema, text) == accepted


def test_reference_to_the_schema_itself_nests() -> None:
    schema = {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    }
    assert accepts(schema, '{"next": {"next": null}}')
    assert not accepts(schema, '{"next": 1}')


def test_grammar_is_the_same_for_equal_schemas() -> None:
    schema = in_property({"type": "integer"})
    assert schema_grammar(schema) == schema_grammar(json.loads(json.dumps(schema)))
