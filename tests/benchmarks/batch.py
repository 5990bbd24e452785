"""A dataset through a pipeline of three distinct files under a budget for one, against the naive loop by hand.

`python -m tests.benchmarks.batch [ROUNDS [QUESTIONS]]`: both in turn, ROUNDS times (3), 64 questions. The naive loop
takes question after question through the stages, and loads each stage's model anew, because only one fits.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from llm_core.call_params import LoadParams
from llm_core.machine import physical_cores, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.prompts import user_message
from tests.benchmarks.model_files import make_variants
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.project import make_project

N_CTX, N_TOKENS, AT_ONCE = 512, 48, 16
STAGES = {"draft": "Q4_1", "critique": "Q8_0", "final": "Q4_0"}
INSTRUCTIONS = {
    "draft": "Write a long story about this.",
    "critique": "Write a long and detailed review of the draft.",
    "final": "Write the long story again, and better, after the critique.",
}
# Greedy on both sides, so that both make the same answers; ours decodes them together all the same.
GENERATION = f"{{temperature: 0, deterministic: false, max_tokens: {N_TOKENS}, n_ctx: {N_CTX}}}"
PIPELINE = "base_pipeline:\n  stages:\n" + "".join(
    f"    - {{id: {stage}, model: {model}, instructions: '{INSTRUCTIONS[stage]}', generation: {GENERATION}}}\n"
    for stage, model in STAGES.items()
)


def naive(files: dict[str, Path], questions: list[str]) -> list[list[int]]:
    """Completion tokens of every answer, by question."""
    counts = []
    for question in questions:
        texts: dict[str, str] = {}
        row = []
        for stage, model in STAGES.items():
            text, n_tokens = by_hand(files[model], user_message(question, texts, INSTRUCTIONS[stage]))
            texts = {stage: text}
            row.append(n_tokens)
        counts.append(row)
    return counts


def by_hand(path: Path, message: str) -> tuple[str, int]:
    """Load, answer, unload: only one model fits."""
    cores = physical_cores()
    # verbose=False would swap stdout and stderr away at every call; make_variants has silenced the log.
    llama = Llama(str(path), n_ctx=N_CTX, n_threads=cores, n_threads_batch=cores, flash_attn=True, verbose=True)
    answer: Any = llama.create_chat_completion(
        [{"role": "user", "content": message}], temperature=0, max_tokens=N_TOKENS
    )
    llama.close()
    return answer["choices"][0]["message"]["content"].strip(), answer["usage"]["completion_tokens"]


def ours(dataset: Path, output: Path) -> tuple[list[list[int]], int]:
    """Completion tokens of every answer, by question, and the number of model loads."""
    from flows.batch import batch

    result = asyncio.run(batch(dataset, output=output))
    counts: dict[int, list[int]] = {}
    for number in range(1, len(STAGES) + 1):
        for line in (result.session_path / f"step{number}.jsonl").read_text().splitlines():
            record = json.loads(line)
            counts.setdefault(record["item"], []).append(record["completion_tokens"])
    return [counts[item] for item in sorted(counts)], result.n_loads


def budget_for_one(folder: Path) -> None:
    """Reserve all memory that is free now but what the largest model needs, and what others may take meanwhile."""
    estimates = MemoryEstimates(folder / "cache")
    loads = [LoadParams(str(folder / "models" / f"{m}.gguf"), N_CTX, sequences=AT_ONCE) for m in STAGES.values()]
    largest = max(estimates.need(load).ram_bytes for load in loads)
    os.environ["MAX_RAM_USAGE_PERCENT"] = "100"
    os.environ["GGUF_FLOW_RAM_RESERVE_MB"] = str((read_machine().ram_available - int(largest * 1.6)) // 2**20)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    n_questions = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    seconds: dict[str, list[float]] = {"naive loop": [], "gguf-flow batch": []}
    with tempfile.TemporaryDirectory() as name, prefect_server(Path(name) / "prefect"):
        folder = Path(name)
        (folder / "files").mkdir()
        files = make_variants(folder / "files", ("Q8_0", "Q4_0"))
        make_project(folder, files, PIPELINE)
        questions = [f"A lighthouse keeper, the sea, and {n} gulls." for n in range(2, n_questions + 2)]
        dataset = folder / "questions.jsonl"
        dataset.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
        budget_for_one(folder)
        for turn in range(rounds):
            started = time.perf_counter()
            by_loop = naive(files, questions)
            seconds["naive loop"].append(time.perf_counter() - started)
            started = time.perf_counter()
            by_batch, n_loads = ours(dataset, folder / f"out{turn}.jsonl")
            seconds["gguf-flow batch"].append(time.perf_counter() - started)
            if by_loop != by_batch or n_loads != len(STAGES):
                raise SystemExit(f"not the same work, or {n_loads} loads: {by_loop}\n{by_batch}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    n_tokens = sum(map(sum, by_loop))
    print(
        f"{n_questions} questions, {len(STAGES)} stages and files, a budget for one, {n_tokens} tokens, {rounds} rounds"
    )
    for name, median in medians.items():
        share = median / medians["naive loop"]
        print(f"{name:18}{median:8.1f} s{n_tokens / median:8.0f} tokens/s   {share:.2f} of the naive loop")
    print(f"model loads: {n_questions * len(STAGES)} and {n_loads}")


if __name__ == "__main__":
    main()
