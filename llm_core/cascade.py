"""Members asked one after another, until enough of them say the same."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llm_core.votes import Merged, majority_vote, voted

DEFAULT_THRESHOLD = 0.6
DEFAULT_AT_LEAST = 2


@dataclass(frozen=True)
class StopRule:
    """When no further member is asked."""

    threshold: float
    """Of agreement, 0 to 1; to reach it is enough."""
    at_least: int
    """So many must have answered."""
    pattern: str | None = None
    """What counts of an answer, as for `voted`."""

    def is_met(self, answers: Collection[str]) -> bool:
        return len(answers) >= self.at_least and agreement(answers, self.pattern) >= self.threshold


def agreement(answers: Collection[str], pattern: str | None = None) -> float:
    """Votes for the leading answer / answers so far.

    An answer without a vote (`pattern` finds nothing in it) agrees with nobody, not even with others that have none.
    """
    votes = [vote for text in answers if (vote := voted(text, pattern))]
    return max(map(votes.count, votes), default=0) / len(answers) if answers else 0.0


def cascade(members: Sequence[str], answers: Mapping[str, str], rule: StopRule) -> Merged:
    """The majority vote of those who were asked until `rule` was met, or of all.

    Answers of later members are left alone: a rerun may have them from a stage in which everybody was asked.

    Args:
        members: of the stage, in order.
        answers: of those who were asked and did not fail.
    """
    heard: dict[str, str] = {}
    agreement_after: dict[str, float] = {}
    n_asked = 0
    for member in members:
        if rule.is_met(heard.values()):
            break
        n_asked += 1
        if member in answers:
            heard[member] = answers[member]
            agreement_after[member] = round(agreement(heard.values(), rule.pattern), 4)
    vote = majority_vote(heard, rule.pattern)
    said = {"agreement": agreement_after, "asked": list(members[:n_asked]), "not_asked": list(members[n_asked:])}
    return Merged(vote.text, vote.agreed, {**vote.evidence, **said})
