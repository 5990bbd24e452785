"""Several JSON objects of one schema become one: a vote on each field, weighted by how sure its voter was of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.decoder import WHITESPACE  # type: ignore[attr-defined]
from math import exp
from typing import Any

from llm_core.errors import AggregationError, ConstraintError
from llm_core.structured import validate_json
from llm_core.votes import Merged

Path = tuple[str, ...]
"""Keys from the outermost object down to a field; a list is one value."""
_ABSENT = "(absent)"


@dataclass(frozen=True)
class Ballot:
    """One member's object, and the log probability of each of its tokens with the byte of the text where it ends."""

    text: str
    logprobs: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Field:
    value: str
    """As JSON, its keys sorted, so that equal values are equal texts."""
    weight: float


def field_vote(ballots: Mapping[str, Ballot], schema: str) -> Merged:
    """The object with, for each field, the value of the greatest weight.

    A vote weighs the geometric mean of its tokens' probabilities, so from 0 to 1; one for leaving the field out weighs
    the mean of that member's other votes. A tie goes to the value whose first voter comes first in the stage. Where the
    fields do not go together, the member's object is taken whose fields weigh most.

    Args:
        ballots: by member.
        schema: that all of them satisfy, as JSON.

    Raises:
        AggregationError: they are no objects.
    """
    votes = {member: fields(ballot) for member, ballot in ballots.items()}
    paths = dict.fromkeys(path for cast in votes.values() for path in cast)
    weights = {path: _weights(path, votes) for path in paths}
    winners = {path: max(found, key=found.__getitem__) for path, found in weights.items()}
    text = _written({path: json.loads(value) for path, value in winners.items() if value != _ABSENT})
    whole = None
    try:
        validate_json(text, schema)
    except ConstraintError:
        whole = max(votes, key=lambda member: sum(weights[path][f.value] for path, f in votes[member].items()))
        text = ballots[whole].text
    agreed = tuple(member for member, ballot in ballots.items() if json.loads(ballot.text) == json.loads(text))
    counted = {".".join(path): {value: round(w, 4) for value, w in found.items()} for path, found in weights.items()}
    return Merged(text, agreed, {"fields": counted} | ({"taken_whole_from": whole} if whole else {}))


def fields(ballot: Ballot) -> dict[Path, Field]:
    """Every field of an object, with its value and what its vote weighs.

    Raises:
        AggregationError: it is none.
    """
    text, found = ballot.text, {}
    try:
        if not isinstance(json.loads(text), dict):
            raise ValueError
        for path, value, start, end in _leaves(text, _skip(text, 0), ()):
            in_bytes = len(text[:start].encode()), len(text[:end].encode())
            found[path] = Field(json.dumps(value, sort_keys=True, ensure_ascii=False), _sureness(ballot, *in_bytes))
    except ValueError:
        raise AggregationError(f"field_vote takes JSON objects, not '{text[:60]}'") from None
    return found


def _weights(path: Path, votes: Mapping[str, Mapping[Path, Field]]) -> dict[str, float]:
    """By value, in the order in which they were first voted for."""
    found: dict[str, float] = {}
    for cast in votes.values():
        mean = sum(vote.weight for vote in cast.values()) / len(cast) if cast else 0.0
        vote = cast.get(path, Field(_ABSENT, mean))
        found[vote.value] = found.get(vote.value, 0.0) + vote.weight
    return found


def _sureness(ballot: Ballot, start: int, end: int) -> float:
    """Geometric mean of the probabilities of the tokens in these bytes; 0 where no model wrote them, and 1, a whole
    vote, where no probabilities are known.
    """
    if not ballot.logprobs:
        return 1.0
    within, begins = [], 0
    for ends, logprob in ballot.logprobs:
        if ends > start and begins < end:
            within.append(logprob)
        begins = ends
    return exp(sum(within) / len(within)) if within else 0.0


def _leaves(text: str, at: int, path: Path) -> list[tuple[Path, Any, int, int]]:
    """(path, value, start, end) of each value in the object that begins at `at`, which is no object itself or empty."""
    decoder = json.JSONDecoder()
    found: list[tuple[Path, Any, int, int]] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        value, end = decoder.raw_decode(text, start)
        within = (*path, key)
        found += _leaves(text, start, within) if isinstance(value, dict) and value else [(within, value, start, end)]
        at = _skip(text, end)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def _skip(text: str, at: int) -> int:
    match = WHITESPACE.match(text, at)
    return int(match.end())


def _written(values: Mapping[Path, Any]) -> str:
    whole: dict[str, Any] = {}
    for path, value in values.items():
        inner = whole
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return json.dumps(whole, ensure_ascii=False)
