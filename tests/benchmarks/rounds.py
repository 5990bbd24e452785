"""What makes rounds of a benchmark fair: the ways in another order each time, and the same work for all."""

from collections.abc import Mapping, Sequence


def in_turn(names: Sequence[str], turn: int) -> list[str]:
    """Another one begins each round, so that nobody always comes first."""
    first = turn % len(names)
    return [*names[first:], *names[:first]]


def check_same_work(counts: Mapping[str, Sequence[tuple[int, int]]], n_tokens: int) -> None:
    """Every way must have read the same prompts and written `n_tokens` to each; else the benchmark ends here."""
    for number, answers in enumerate(zip(*counts.values(), strict=True), start=1):
        if len(set(answers)) != 1 or answers[0][1] != n_tokens:
            told = dict(zip(counts, answers, strict=True))
            raise SystemExit(f"not the same work, request {number}, {n_tokens} tokens wanted; (prompt, answer): {told}")
