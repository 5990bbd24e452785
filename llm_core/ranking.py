"""Models judge answers: each member ranks the others' (Borda), or one model picks the best."""

import re
import string
from collections.abc import Mapping, Sequence
from itertools import permutations

from llm_core.errors import AggregationError
from llm_core.votes import Merged, normalised

RANKING_INSTRUCTIONS = (
    "Several answers to a question are given under letters. Rank them from best to worst. "
    "Reply with the letters only, like this: B > A > C"
)
JUDGE_INSTRUCTIONS = (
    "Several answers to a question are given under numbers. Which one is best? Reply with its number only."
)
_RANKING = re.compile(r"\b[A-Z](?:\s*[>,]\s*[A-Z]\b)*")


def ballot(members: Sequence[str], ranker: str) -> dict[str, str]:
    """Letter → member, for all but `ranker`: anonymous, and each ranker sees another one first."""
    others = [member for member in members if member != ranker]
    start = list(members).index(ranker) % len(others)
    return dict(zip(string.ascii_uppercase, [*others[start:], *others[:start]], strict=False))


def ranking_message(question: str, answers: Mapping[str, str], instructions: str | None = None) -> str:
    """What a ranker is asked.

    Args:
        answers: by letter.
    """
    listed = "\n\n".join(f"Answer {letter}:\n{text}" for letter, text in answers.items())
    return f"{instructions or RANKING_INSTRUCTIONS}\n\nQuestion:\n{question}\n\n{listed}\n\nRanking:"


def ranking_grammar(letters: Sequence[str]) -> str:
    """Lark: every letter once; of more than four, as many letters as there are."""
    if len(letters) <= 4:
        orders = (" > ".join(order) for order in permutations(letters))
        return "start: " + " | ".join(f'"{order}"' for order in orders)
    more = ' " > " LETTER' * (len(letters) - 1)
    return f"start: LETTER{more}\nLETTER: /[{letters[0]}-{letters[-1]}]/"


def read_ranking(reply: str, letters: Sequence[str]) -> tuple[str, ...]:
    """The letters of the longest `B > A > C` in a reply, the last of equals; () where there is none."""
    best: tuple[str, ...] = ()
    for match in _RANKING.finditer(reply):
        found = tuple(dict.fromkeys(letter for letter in re.findall("[A-Z]", match[0]) if letter in letters))
        if len(found) >= max(len(best), min(2, len(letters))):
            best = found
    return best


def borda(answers: Mapping[str, str], rankings: Mapping[str, Sequence[str]]) -> Merged:
    """The answer with the highest mean of points: on a ballot of m answers the best gets m - 1, the next m - 2, …

    Answers that a ballot leaves out share what points it has left. A tie goes to who comes first in the stage.

    Args:
        answers: by member.
        rankings: by ranker, the other members, best first; an empty one is no ballot.

    Raises:
        AggregationError: no member gave a ranking.
    """
    points: dict[str, list[float]] = {member: [] for member in answers}
    for ranker, ranked in rankings.items():
        if not ranked:
            continue
        others = [member for member in answers if member != ranker]
        left_out = [member for member in others if member not in ranked]
        for place, member in enumerate(ranked):
            points[member].append(len(others) - 1 - place)
        for member in left_out:
            points[member].append((len(left_out) - 1) / 2)
    scores = {member: sum(given) / len(given) for member, given in points.items() if given}
    if not scores:
        raise AggregationError("no member gave a ranking that can be read")
    winner = max(scores, key=scores.__getitem__)
    agreed = tuple(ranker for ranker, ranked in rankings.items() if ranked and ranked[0] == winner)
    evidence = {"points": scores, "rankings": {ranker: list(ranked) for ranker, ranked in rankings.items()}}
    return Merged(answers[winner], agreed, evidence)


def judge_message(question: str, answers: Mapping[str, str], instructions: str | None = None) -> str:
    """What the judge is asked; answers are numbered from 1 and anonymous."""
    listed = "\n\n".join(f"Answer {number}:\n{text}" for number, text in enumerate(answers.values(), 1))
    return f"{instructions or JUDGE_INSTRUCTIONS}\n\nQuestion:\n{question}\n\n{listed}\n\nThe best answer is number"


def judge_grammar(n_answers: int) -> str:
    """Lark: one of the numbers."""
    return "start: " + " | ".join(f'"{number}"' for number in range(1, n_answers + 1))


def judged(answers: Mapping[str, str], reply: str) -> Merged:
    """The answer whose number stands first in the judge's reply, or alone in it.

    Raises:
        AggregationError: the reply names none, or several.
    """
    first = re.match(r"\W*(?:(?:answer|number|candidate)\s*#?)?(\d+)\b", reply, re.IGNORECASE)
    numbers = {int(number) for number in ([first[1]] if first else re.findall(r"\b\d+\b", reply))}
    named = sorted(number for number in numbers if 1 <= number <= len(answers))
    if len(named) != 1:
        raise AggregationError(f"the judge names no one answer of {len(answers)}: '{reply[:100]}'")
    chosen = list(answers)[named[0] - 1]
    same = normalised(answers[chosen])
    agreed = tuple(member for member, text in answers.items() if normalised(text) == same)
    return Merged(answers[chosen], agreed, {"chosen": chosen, "reply": reply})
