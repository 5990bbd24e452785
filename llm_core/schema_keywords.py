"""Which keywords of a JSON schema are enforced, and that there are no others: none is ever ignored."""

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from llm_core.documents import key_path, near_name

ENFORCED = frozenset(
    "type enum const properties required additionalProperties patternProperties minProperties maxProperties items "
    "prefixItems minItems maxItems anyOf oneOf allOf $ref minimum maximum exclusiveMinimum exclusiveMaximum multipleOf "
    "minLength maxLength pattern format".split()
)
ANNOTATIONS = frozenset(
    "title description default examples $comment deprecated readOnly writeOnly discriminator".split()
)
"""They say nothing of what is valid; `discriminator` is pydantic's, beside a `oneOf`."""
_DEFINITIONS = ("$defs", "definitions")
_AT_THE_TOP = ("$schema", "$id")
_UNENFORCED = frozenset(
    "not if then else contains minContains maxContains uniqueItems propertyNames dependentRequired dependentSchemas "
    "dependencies unevaluatedItems unevaluatedProperties additionalItems contentEncoding contentMediaType "
    "contentSchema $id $anchor $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor $vocabulary".split()
)
_DRAFTS = re.compile(r"https?://json-schema\.org/(draft-0[67]|draft/2019-09|draft/2020-12)/schema#?")
_REFERENCE = re.compile(r"#\Z|#/\$defs/|#/definitions/")
_IN_A_MAPPING = ("properties", "patternProperties", *_DEFINITIONS)
_IN_A_LIST = ("anyOf", "oneOf", "allOf", "prefixItems")
_ALONE = ("items", "additionalProperties")
_READERS_DISAGREE = re.compile(r"\\[DW]|\[\^[^\]]*\\[dw]")
"""Python's \\d and \\w take all scripts, those of JSON schemas ASCII only; so what they exclude differs."""

Location = tuple[str | int, ...]


def check_keywords(schema: Any) -> None:
    """Refuse whatever cannot be enforced while an answer is written.

    Raises:
        ValueError: `key.path: what is wrong`.
    """
    _check_draft(schema)
    for location, one in subschemas(schema):
        for key in one if isinstance(one, Mapping) else ():
            at = (*location, key)
            if key in _DEFINITIONS or key in ANNOTATIONS or (not location and key in _AT_THE_TOP):
                continue
            if key in _UNENFORCED:
                raise _wrong(at, "cannot be enforced while an answer is written; take it out")
            if key not in ENFORCED:
                raise _wrong(at, "unknown keyword" + near_name(key, sorted(ENFORCED)).partition("; known")[0])
        if isinstance(one, Mapping):
            _check_reference(schema, location, one)
            _check_patterns(location, one)
            if one.get("minProperties", 0) > len(one.get("required", ())) + 1:
                raise _wrong((*location, "minProperties"), "cannot be enforced above the number of 'required' plus 1")


def subschemas(schema: Any, location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """The schema itself and every one in it, each with its place."""
    yield location, schema
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        at = (*location, key)
        if key in _IN_A_MAPPING and isinstance(value, Mapping):
            for name, inner in value.items():
                yield from subschemas(inner, (*at, name))
        elif key in _IN_A_LIST and isinstance(value, list):
            for number, inner in enumerate(value):
                yield from subschemas(inner, (*at, number))
        elif key in _ALONE:
            yield from subschemas(value, at)


def _check_draft(schema: Any) -> None:
    draft = schema.get("$schema") if isinstance(schema, Mapping) else None
    if draft is not None and not (isinstance(draft, str) and _DRAFTS.fullmatch(draft)):
        raise _wrong(("$schema",), f"{draft!r} is none of draft-06, draft-07, 2019-09 and 2020-12")


def _check_reference(root: Any, location: Location, schema: Mapping[str, Any]) -> None:
    """Follow `$ref` to what is no mere reference."""
    seen: set[str] = set()
    while isinstance(schema, Mapping) and "$ref" in schema:
        reference = schema["$ref"]
        if not (isinstance(reference, str) and _REFERENCE.match(reference)):
            raise _wrong((*location, "$ref"), f"{reference!r} is not '#', '#/$defs/…' or '#/definitions/…'")
        if reference in seen:
            raise _wrong((*location, "$ref"), f"{reference!r} leads back to itself")
        seen.add(reference)
        schema = _target(root, location, reference)


def _target(root: Any, location: Location, reference: str) -> Any:
    found = root
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or name not in found:
            raise _wrong((*location, "$ref"), f"{reference!r} does not exist")
        found = found[name]
    if not any(one is found for _, one in subschemas(root)):
        raise _wrong((*location, "$ref"), f"{reference!r} is no schema")
    return found


def _check_patterns(location: Location, schema: Mapping[str, Any]) -> None:
    patterns: list[tuple[Location, str]] = [(("pattern",), schema["pattern"])] if "pattern" in schema else []
    patterns += [(("patternProperties", pattern), pattern) for pattern in schema.get("patternProperties", ())]
    for at, pattern in patterns:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                re.compile(f"{pattern}(?:)")  # else a pattern that is in re's cache would not be warned of
        except (re.error, FutureWarning, DeprecationWarning) as error:
            raise _wrong((*location, *at), f"regular expression: {error}") from None
        if _READERS_DISAGREE.search(pattern):
            problem = r"\D, \W and [^\d\w] are not the same to every reader; write [^0-9] or [^0-9A-Za-z_]"
            raise _wrong((*location, *at), problem)


def _wrong(location: Location, problem: str) -> ValueError:
    return ValueError(f"{key_path(location)}: {problem}")
