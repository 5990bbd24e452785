"""How often a small model is right: asked once, by self-consistency of 5 and of 9, and by a cascade; and at what cost.

`python -m tests.benchmarks.accuracy [ROUNDS [GSM8K.jsonl]]`: 200 capitals as a dataset run through each way in turn,
ROUNDS times (3), each draw with a seed of its own; then, if it is given, a file of rows with `question` and `answer`
(a number) through one draw. Right is an answer that names the capital and nothing else; there, one whose last number
is the answer. No answer is a wrong one.
"""

import asyncio
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.capitals import GRAMMAR, PATTERN, capital_questions, names_capital
from tests.benchmarks.model_files import SMOLLM
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.project import make_project
from tests.benchmarks.proportions import bootstrap_interval, wilson_interval
from tests.benchmarks.rounds import in_turn

STAGE = {
    "id": "answer",
    "model": "small",
    "grammar": GRAMMAR,
    "generation": {"temperature": 0.7, "max_tokens": 24, "n_ctx": 256},
}
CASCADE = {"type": "cascade", "threshold": 0.6, "at_least": 2, "pattern": PATTERN}
CONSISTENCY = {"type": "self_consistency", "pattern": PATTERN}
WAYS: dict[str, dict[str, Any]] = {
    "solo": STAGE,
    "self-consistency-5": {**STAGE, "samples": 5, "aggregation": CONSISTENCY},
    "self-consistency-9": {**STAGE, "samples": 9, "aggregation": CONSISTENCY},
    "cascade": {**STAGE, "samples": 9, "aggregation": CASCADE},
}
SEEDS_APART = 1000
"""Between rounds; a sample's seed is the number of those before it higher."""
GSM8K_STAGE = {
    "id": "answer",
    "model": "small",
    "instructions": "Solve the problem step by step. End with #### and the number.",
    "generation": {"temperature": 0.7, "max_tokens": 200, "n_ctx": 1024},
}
COLUMNS = ("", "right", "points more than solo", "completion tokens", "a question", "answers a question", "by round")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Outcome:
    """What one dataset run came to, question by question."""

    right: tuple[bool, ...]
    n_calls: int
    n_tokens: int
    """Of completions, those of every sample."""
    n_unanswered: int


def ends_with_number(answer: str | None, number: str) -> bool:
    """Whether the last number in an answer is this one; commas in numbers aside."""
    found = _NUMBER.findall(answer or "")
    return bool(found) and float(found[-1].replace(",", "")) == float(number.replace(",", ""))


async def ask(dataset: Path, pipeline: str, is_right: Callable[[dict[str, Any]], bool], seed: int) -> Outcome:
    """One dataset run; `is_right` sees a row of its results. With one seed all ways begin with the same draws."""
    from flows.batch import batch

    result = await batch(dataset, pipeline, overrides=[f"answer.seed={seed}"])
    rows = [json.loads(line) for line in result.output.read_text().splitlines()]
    steps = [row["result"]["steps"].get("answer") for row in rows]
    return Outcome(
        right=tuple(map(is_right, rows)),
        n_calls=sum(len(step["members"]) if isinstance(step, dict) else step is not None for step in steps),
        n_tokens=sum(row["result"]["completion_tokens"] for row in rows),
        n_unanswered=result.n_failed,
    )


def names_its_capital(row: dict[str, Any]) -> bool:
    return names_capital(row["result"]["answer"], row["accepted"])


def ends_with_its_number(row: dict[str, Any]) -> bool:
    return ends_with_number(row["result"]["answer"], row["answer"])


def shares(outcomes: list[Outcome]) -> list[float]:
    """Of each question: how often it was right, over the rounds."""
    return [statistics.fmean(row) for row in zip(*(outcome.right for outcome in outcomes), strict=True)]


def show(outcomes: dict[str, list[Outcome]]) -> None:
    solo = shares(outcomes["solo"])
    n = len(solo)
    print(f"{n} capitals, means of {len(outcomes['solo'])} round(s); [95 % intervals]")
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---" * len(COLUMNS) + "|")
    for way, rounds in outcomes.items():
        own = shares(rounds)
        low, high = wilson_interval(statistics.fmean(own), n)
        n_tokens = statistics.fmean(outcome.n_tokens for outcome in rounds)
        n_calls = statistics.fmean(outcome.n_calls for outcome in rounds)
        cells = [
            way,
            f"{100 * statistics.fmean(own):.1f} % [{100 * low:.1f}, {100 * high:.1f}]",
            "" if way == "solo" else difference([a - b for a, b in zip(own, solo, strict=True)]),
            f"{n_tokens:,.0f}",
            f"{n_tokens / n:.1f}",
            f"{n_calls / n:.2f}",
            ", ".join(str(sum(outcome.right)) for outcome in rounds),
        ]
        print(f"| {' | '.join(cells)} |")
    n_unanswered = sum(outcome.n_unanswered for rounds in outcomes.values() for outcome in rounds)
    print(f"without an answer, and counted as wrong: {n_unanswered}")


def show_gsm8k(outcome: Outcome) -> None:
    n_right, n = sum(outcome.right), len(outcome.right)
    low, high = wilson_interval(n_right / n, n)
    print(f"GSM8K, one draw: {n_right} of {n} [{100 * low:.1f}, {100 * high:.1f} %], {outcome.n_tokens:,} tokens")


def difference(differences: list[float]) -> str:
    low, high = bootstrap_interval(differences)
    return f"{100 * statistics.fmean(differences):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    gsm8k = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    pipelines = {way: {"stages": [stage]} for way, stage in WAYS.items()} | {"gsm8k": {"stages": [GSM8K_STAGE]}}
    outcomes: dict[str, list[Outcome]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name, prefect_server(Path(name) / "prefect"):
        folder = Path(name)
        written = json.dumps({"base_pipeline": pipelines["solo"], "pipelines": pipelines})  # JSON is YAML
        make_project(folder, {"small": SMOLLM}, written)
        dataset = folder / "capitals.jsonl"
        dataset.write_text("".join(json.dumps(row) + "\n" for row in capital_questions()))
        for turn in range(rounds):
            for way in in_turn(list(WAYS), turn):
                outcomes[way].append(asyncio.run(ask(dataset, way, names_its_capital, SEEDS_APART * (turn + 1))))
                print(f"round {turn + 1}, {way}: {sum(outcomes[way][-1].right)} right", file=sys.stderr)
        show(outcomes)
        if gsm8k:
            show_gsm8k(asyncio.run(ask(gsm8k, "gsm8k", ends_with_its_number, SEEDS_APART)))


if __name__ == "__main__":
    main()
