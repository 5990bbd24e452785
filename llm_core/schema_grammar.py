"""A JSON schema as a grammar for llguidance, and whatever it cannot enforce as an error."""

import json
import math
import warnings
from copy import deepcopy
from functools import lru_cache
from typing import Any

from llm_core.closing import byte_matcher, byte_tokenizer, closed
from llm_core.constraint_errors import guarded, one_line
from llm_core.documents import key_path
from llm_core.errors import ConstraintError
from llm_core.schema_keywords import check_keywords, subschemas
from llm_core.structured import validate_json

LARGEST = 2**53 - 1
"""Numbers without bounds of their own are kept within it: other readers of JSON hold no more exactly (RFC 8259, 6)."""
SMALLEST = 1e-15
"""A number that must not be 0 is no smaller: one of 330 zeros would be read as 0."""

_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrtbf\\"',  # one spelling for every text: "\u0061" would pass for a key other than "a"
}


def schema_grammar(schema: Any) -> str:
    """The grammar of the JSON that `schema` allows, on one line, with `, ` and `: `.

    It is a little narrower than the schema: numbers are such that a float holds them, texts have no \\u escapes.

    Raises:
        ValueError: one line, with the key path in the schema where there is one.
    """
    try:
        return _grammar(json.dumps(schema, allow_nan=False, sort_keys=False))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


@lru_cache(maxsize=256)
def _grammar(text: str) -> str:
    schema = json.loads(text)
    _check_valid(schema)
    if isinstance(schema, bool):
        if not schema:
            raise ValueError("nothing satisfies it")
        schema = {}
    check_keywords(schema)
    grammar = _compiled(_narrowed(schema))
    if problem := _problem(grammar):
        location = _location(schema, problem)
        raise ValueError(f"{key_path(location)}: {problem}" if location else problem)
    _check_example(grammar, schema)
    return grammar


def _check_valid(schema: Any) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        with warnings.catch_warnings(action="ignore"):  # check_keywords looks at patterns itself
            Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        at = key_path(error.absolute_path)
        raise ValueError(f"{at}: {one_line(error.message)}" if at else one_line(error.message)) from None


def _compiled(schema: Any) -> str:
    from llguidance import LLMatcher

    schema = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)  # type: ignore[arg-type]


def _problem(grammar: str) -> str | None:
    """What llguidance cannot do with a grammar, or cannot begin."""
    from llguidance import LLMatcher

    try:
        with guarded("llguidance"):
            _, problems = LLMatcher.validate_grammar_with_warnings(grammar, byte_tokenizer())
            if problems:
                return one_line(problems[0])
            matcher = byte_matcher(grammar)
            return None if matcher.is_accepting() or any(matcher.compute_bitmask()) else "nothing satisfies it"
    except ConstraintError as error:
        return str(error)


def _location(schema: Any, problem: str) -> tuple[str | int, ...]:
    """Where the innermost schema stands that has the same problem by itself."""
    definitions = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
    found: tuple[str | int, ...] = ()
    for location, one in subschemas(schema):
        if len(location) > len(found) and isinstance(one, dict):
            alone = _problem(_compiled(_narrowed(definitions | one)))
            found = location if alone == problem else found
    return found


def _narrowed(schema: Any) -> Any:
    schema = deepcopy(schema)
    for _, one in subschemas(schema):
        kinds = one.get("type", ()) if isinstance(one, dict) else ()
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if not {"number", "integer"}.isdisjoint(kinds) and not {"enum", "const"} & set(one):
            if "number" in kinds:
                _close_bound(one, "exclusiveMinimum", "minimum", math.inf)
                _close_bound(one, "exclusiveMaximum", "maximum", -math.inf)
            lowest = one.get("minimum", one.get("exclusiveMinimum", -LARGEST))
            highest = one.get("maximum", one.get("exclusiveMaximum", LARGEST))
            if "exclusiveMinimum" not in one and lowest <= highest:
                one["minimum"] = lowest
            if "exclusiveMaximum" not in one and lowest <= highest:
                one["maximum"] = highest
    return schema


def _close_bound(schema: dict[str, Any], exclusive: str, inclusive: str, towards: float) -> None:
    """The nearest float in place of an exclusive bound: a decimal between the two would be read as one of them."""
    if exclusive not in schema:
        return
    bound = schema.pop(exclusive)
    nearest = math.copysign(SMALLEST, towards) if bound == 0 else math.nextafter(bound, towards)
    tighter = max if towards > 0 else min
    schema[inclusive] = tighter(nearest, schema.get(inclusive, nearest))


def _check_example(grammar: str, schema: Any) -> None:
    """Whether the shortest answer that the grammar allows is one that the schema allows."""
    try:
        example = closed(grammar, b"").decode()
    except ConstraintError:
        return  # none was found; a model may find one
    try:
        validate_json(example, json.dumps(schema))
    except ConstraintError as error:
        raise ValueError(f"cannot be enforced: {example[:80]} would pass, but {error}") from None
