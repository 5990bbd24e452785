"""What holding answers to a schema costs: tokens/s of 8 requests together, with a mask and without.

`python -m tests.benchmarks.constrained [ROUNDS]`: all ways in turn, ROUNDS times (7), after one uncounted round. The
prompts of a round are alike for all ways, and every answer has as many tokens. Loading and compiling are not counted;
that every constrained answer is cut off at the end, and completed, is.
"""

import itertools
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from llm_core.call_params import Constraint, LoadParams, SamplingParams
from llm_core.constraints import schema_constraint
from llm_core.generation import GenerateRequest
from llm_core.machine import physical_cores
from llm_core.worker import ModelWorker
from tests.benchmarks.engine import Counts, chats
from tests.benchmarks.model_files import SMOLLM
from tests.benchmarks.rounds import check_same_work, in_turn

REQUESTS, N_CTX, N_TOKENS = 8, 512, 64
CORES = physical_cores()
ITEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]+$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["good", "bad", "mixed"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
# Each asks for more than N_TOKENS, so that no answer ends before.
WAYS: dict[str, Constraint | None] = {
    "free": None,
    "one text": schema_constraint(
        {"type": "object", "properties": {"story": {"type": "string", "minLength": 500}}, "required": ["story"]}
    ),
    "list of objects": schema_constraint({"type": "array", "items": ITEM, "minItems": 8}),
}


def ask_all(worker: ModelWorker, prompts: list[str], constraint: Constraint | None) -> list[Counts]:
    sampling = SamplingParams(temperature=0, max_tokens=N_TOKENS, deterministic=False)

    def ask(prompt: str) -> Counts:
        request = GenerateRequest((("user", prompt),), sampling, threads=CORES, constraint=constraint)
        result = worker.generate(request)
        return result.prompt_tokens, result.completion_tokens

    with ThreadPoolExecutor(len(prompts)) as threads:
        return list(threads.map(ask, prompts))


def speeds(worker: ModelWorker, rounds: int) -> dict[str, list[float]]:
    prompts = chats()
    measured: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        counts: dict[str, list[Counts]] = {}
        asked = list(itertools.islice(prompts, REQUESTS))
        for name in in_turn([*WAYS], turn):
            started = time.perf_counter()
            counts[name] = ask_all(worker, [f"{turn}{name}: {prompt}" for prompt in asked], WAYS[name])
            if turn:
                measured[name].append(REQUESTS * N_TOKENS / (time.perf_counter() - started))
        if turn:
            print(*(f"{measured[name][-1]:.1f}" for name in WAYS), flush=True)
        check_same_work({name: [(0, n) for _, n in answers] for name, answers in counts.items()}, N_TOKENS)
    return measured


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(f"tokens/s, {REQUESTS} requests together, {N_TOKENS} tokens each, {CORES} cores: {', '.join(WAYS)}")
    worker = ModelWorker(LoadParams(str(SMOLLM), N_CTX, sequences=REQUESTS), "smollm2")
    worker.use_threads(CORES)
    measured = speeds(worker, rounds)
    worker.close()
    for way, values in measured.items():
        ratios = [value / free for value, free in zip(values, measured["free"], strict=True)]
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{way:>18}: median {statistics.median(values):.1f}; / free, round by round: {shown}")


if __name__ == "__main__":
    main()
