"""Which of several answers is the one: by counting those that say the same, or by how alike they are."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rapidfuzz.distance import Levenshtein

AGREEMENT = 0.8
"""So alike to the chosen answer is one that agrees with it, where texts are compared and not counted."""
_NUMBER = re.compile(r"[-+]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?")


@dataclass(frozen=True)
class Merged:
    """The one answer, the members who said the same, and what it rests on."""

    text: str
    agreed: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)


def normalised(text: str) -> str:
    """What two answers must share to count as the same: case, spacing, outer punctuation, Unicode form, and the ways
    to write a number aside.
    """
    folded = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold())
    plain = folded.strip(" .,;:!?\"'`*()[]")
    return f"{Decimal(plain.replace(',', '')).normalize():f}" if _NUMBER.fullmatch(plain) else plain


def voted(text: str, pattern: str | None) -> str:
    """What an answer votes for: all of it, or what `pattern` (its first group, if it has one) finds last."""
    if pattern is None:
        return normalised(text)
    found = [match[1] if match.re.groups else match[0] for match in re.finditer(pattern, text)]
    return normalised(found[-1] or "") if found else ""


def majority_vote(
    answers: Mapping[str, str], pattern: str | None = None, weights: Mapping[str, float] | None = None
) -> Merged:
    """The answer with the most votes, each of its member's weight (1).

    A tie goes to the answer whose first voter comes first in the stage; the text is that voter's own. An empty vote is
    none, unless all are empty.

    Args:
        pattern: what counts of an answer, as for `voted`.
        weights: by member.
    """
    votes = {member: voted(text, pattern) for member, text in answers.items()}
    votes = {member: vote for member, vote in votes.items() if vote} or votes
    counts: dict[str, float] = {}
    for member, vote in votes.items():
        counts[vote] = counts.get(vote, 0) + (weights or {}).get(member, 1)
    winner = max(counts, key=counts.__getitem__)  # the first of those with the most
    agreed = tuple(member for member, vote in votes.items() if vote == winner)
    return Merged(answers[agreed[0]], agreed, {"counts": counts})


def most_similar(answers: Mapping[str, str]) -> Merged:
    """The medoid: the answer with the highest mean Levenshtein similarity (0 to 1) to the others; first of equals."""
    given = {member: text for member, text in answers.items() if text} or dict(answers)
    scores = {}
    for member, text in given.items():
        others = [Levenshtein.normalized_similarity(text, other) for name, other in given.items() if name != member]
        scores[member] = round(sum(others) / len(others), 4) if others else 1.0
    chosen = max(scores, key=scores.__getitem__)
    alike = {m: Levenshtein.normalized_similarity(given[chosen], text) for m, text in given.items()}
    return Merged(given[chosen], tuple(m for m in given if alike[m] >= AGREEMENT), {"similarity": scores})
