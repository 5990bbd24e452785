"""An answer that was cut off goes on, byte by byte, until its grammar accepts it: no model is asked."""

import json
import random
import re
import string
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

from llm_core.constraint_errors import guarded, one_line
from llm_core.errors import ConstraintError
from llm_core.pattern_example import pattern_example

REACHES = (64, 512, 4096)
"""Bytes to the end, at most, of one attempt."""
MOST_ENDS = 24
"""Of the example of one pattern."""
_N_SHUFFLES = 8

_QUOTE = ord('"')
_BRACKETS = b"}]"
_LATE = b" ,[{\\"
_ALNUM = (string.digits + string.ascii_uppercase + string.ascii_lowercase).encode()
_SIGNS = bytes(byte for byte in range(33, 127) if byte not in b'}]"' + _LATE + _ALNUM)
_REST = bytes([*range(33), *range(127, 256)])
_OF_FORMAT = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "email": "a@a.aa",
    "time": "00:00:00Z",
    "uri": "https://a.aa",
}


def closed(grammar: str, text: bytes) -> bytes:
    """`text` and what makes it an answer that `grammar` accepts; the same for the same text.

    llguidance tells which bytes may come next, not which way is short. So several preferences among them are followed,
    each to the end: what closes first, then letters or signs, alike all along or in turn.

    Raises:
        ConstraintError: `text` does not begin such an answer, or no end was found.
    """
    with guarded("the cut-off answer cannot be closed"):
        start = byte_matcher(grammar)
        if not start.consume_tokens(list(text)):
            raise ConstraintError(f"the cut-off answer breaks its grammar: {one_line(start.get_error())}")
        if start.is_accepting():
            return text
        for way, most in _attempts(grammar):
            whole = _follow(start.deep_copy(), text, way, most)
            if whole is not None:
                return whole
    raise ConstraintError("the cut-off answer cannot be closed: no end of it was found; raise max_tokens")


class _Way:
    """A preference among the bytes that may come next; within a string its end comes first, else what ends a value."""

    def __init__(
        self, order: bytes, *, in_turn: bool = False, eager: bool = True, literals: tuple[bytes, ...] = ()
    ) -> None:
        self._in_string = bytes([_QUOTE]) + order + _BRACKETS
        self._outside = _BRACKETS + b',"' + order
        self._used = [0] * 256 if in_turn else None
        self._eager = eager
        self.literals = literals
        """Tried within strings before any byte, with the quote behind them."""

    def choose(self, mask: bytes, *, in_string: bool) -> int | None:
        """The first that may come, or with `in_turn` the one of them that has come least often.

        Even then one that is `eager` takes what in JSON closes a value.
        """
        order = self._in_string if in_string else self._outside
        allowed = (byte for byte in order if mask[byte >> 3] >> (byte & 7) & 1)
        first = next(allowed, None)
        if self._used is None or first is None or (self._eager and first in (b'"' if in_string else b"}],")):
            return first
        byte = min((first, *allowed), key=self._used.__getitem__)
        self._used[byte] += 1
        return byte


def _attempts(grammar: str) -> Iterator[tuple[_Way, int]]:
    """Ways and how far to follow each: every one so far before any goes farther, but for the first, which fit most."""
    near, far, farthest = REACHES
    yield from ((way, most) for most in (near, far) for way in islice(_ways(grammar), 2))
    yield from ((way, most) for most in (near, far, farthest) for way in _ways(grammar))


def _ways(grammar: str) -> Iterator[_Way]:
    if literals := _literals(grammar):
        yield _Way(_ALNUM + _SIGNS + _LATE + _REST, literals=literals)
    yield _Way(_ALNUM + _SIGNS + _LATE + _REST)
    yield _Way(_SIGNS + _ALNUM + _LATE + _REST)
    yield _Way(_ALNUM[::-1] + _SIGNS + _LATE + _REST)
    yield _Way(_ALNUM + _SIGNS + _LATE + _REST, in_turn=True)
    yield _Way(_SIGNS + _ALNUM + _LATE + _REST, in_turn=True)
    yield _Way(_SIGNS + _ALNUM + _LATE + _REST, in_turn=True, eager=False)
    for seed in range(_N_SHUFFLES):
        shuffled = list(_ALNUM + _SIGNS)
        random.Random(seed).shuffle(shuffled)
        yield _Way(bytes(shuffled) + _LATE + _REST)


def _follow(matcher: Any, text: bytes, way: _Way, most: int) -> bytes | None:
    """`text` to the first end on this way; `None` if there is none within `most` bytes."""
    whole = bytearray(text)
    in_string = _within_string(whole)
    while len(whole) < len(text) + most and not matcher.is_stopped():
        taken = matcher.compute_ff_bytes() or _literal(matcher, way, in_string)
        if not taken:
            byte = way.choose(matcher.compute_bitmask(), in_string=in_string)
            if byte is None:
                return None
            taken = bytes([byte])
        if not matcher.consume_tokens(list(taken)):
            return None
        whole += taken
        if matcher.is_accepting():
            return bytes(whole)
        if b'"' in taken:
            in_string = _within_string(whole)
    return None


def _literal(matcher: Any, way: _Way, in_string: bool) -> bytes:
    """What `way` knows to end this string with, if anything."""
    for literal in way.literals if in_string else ():
        if matcher.validate_tokens(list(literal)) == len(literal):
            return literal
    return b""


def _within_string(text: bytes | bytearray) -> bool:
    """Whether JSON that goes so far is inside of a string."""
    return re.sub(rb"\\.", b"", text, flags=re.DOTALL).count(b'"') % 2 == 1


def byte_matcher(grammar: str) -> Any:
    """A matcher whose tokens are single bytes; it needs no model.

    Raises:
        ConstraintError: the grammar is not one.
    """
    from llguidance import LLMatcher

    matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0)
    if matcher.is_error():
        raise ConstraintError(one_line(matcher.get_error()))
    return matcher


@cache
def byte_tokenizer() -> Any:
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()))


class _Bytes:
    """A vocabulary of the 256 bytes and an end."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _literals(grammar: str) -> tuple[bytes, ...]:
    """Ends of strings that no preference would find: of an example of each pattern and format in a schema."""
    try:
        strings = list(_strings(json.loads(grammar)))
    except ValueError:  # Lark
        return ()
    examples = [pattern_example(text) for key, text in strings if key == "pattern"]
    examples += [_OF_FORMAT.get(text) for key, text in strings if key == "format"]
    ends = [example[at:] for example in examples if example for at in range(len(example))[-MOST_ENDS:]]
    return tuple(
        json.dumps(end, ensure_ascii=False)[1:].encode() for end in sorted(set(ends), key=lambda end: (len(end), end))
    )


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every text in it that has a key, with the key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key, inner
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
