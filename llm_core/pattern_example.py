"""A short text that matches a regular expression."""

import re._parser as parser  # type: ignore[import-not-found]
from typing import Any

_IN_CATEGORY = {"CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " "}
_CANDIDATES = "a0A_-. "


def pattern_example(pattern: str) -> str | None:
    """Made of the first alternatives, the fewest repetitions and the first letters; `None` where that is not enough.

    Source: the parse tree of Python's own `re`.
    """
    try:
        return "".join(map(_example, parser.parse(pattern)))
    except (ValueError, RecursionError, parser.error):
        return None


def _example(node: tuple[Any, Any]) -> str:
    kind, value = str(node[0]), node[1]
    if kind == "LITERAL":
        return chr(value)
    if kind == "ANY":
        return "a"
    if kind == "NOT_LITERAL":
        return "b" if value == ord("a") else "a"
    if kind == "IN":
        return _member(value)
    if kind == "AT":
        return ""
    if kind == "BRANCH":
        return "".join(map(_example, value[1][0]))
    if kind == "SUBPATTERN":
        return "".join(map(_example, value[-1]))
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        return "".join(map(_example, value[2])) * int(value[0])
    raise ValueError(kind)


def _member(items: list[tuple[Any, Any]]) -> str:
    """A letter of a class."""
    kind, value = str(items[0][0]), items[0][1]
    if kind == "NEGATE":
        excluded = {chr(code) for kind, code in items[1:] if str(kind) == "LITERAL"}
        return next((letter for letter in _CANDIDATES if letter not in excluded), "~")
    if kind == "RANGE":
        return chr(value[0])
    return chr(value) if kind == "LITERAL" else _IN_CATEGORY[str(value)]
