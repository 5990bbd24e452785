"""A stage of three distinct models in mode `auto` against the same work written by hand with llama-cpp-python.

`python -m tests.benchmarks.fanout [ROUNDS]`: the three ways in turn, ROUNDS times (3), after one uncounted round.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from llama_cpp import Llama

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.machine import Limits, budget, physical_cores, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.placement import place
from llm_core.plan import Call, Plan, StagePlan
from llm_core.pool import ModelPool
from llm_core.residency import plan_residency
from llm_core.worker import ModelWorker
from tests.benchmarks.model_files import make_variants

N_CTX, N_TOKENS = 2048, 320
QUESTION = "Write a long story about a lighthouse keeper and the sea. " * 6
CORES = physical_cores()


def by_hand(path: Path, threads: int) -> int:
    """Load, answer, unload; returns the tokens of the answer."""
    # verbose=False would swap stdout and stderr away, which threads must not do; make_variants has silenced the log.
    model = Llama(str(path), n_ctx=N_CTX, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=True)
    answer = model.create_chat_completion([{"role": "user", "content": QUESTION}], temperature=0, max_tokens=N_TOKENS)
    model.close()
    return answer["usage"]["completion_tokens"]


def sequential(paths: list[Path]) -> list[int]:
    return [by_hand(path, CORES) for path in paths]


def thread_split(paths: list[Path]) -> list[int]:
    return in_threads([lambda p=path: by_hand(p, max(1, CORES // len(paths))) for path in paths])


def auto(paths: list[Path], estimates: MemoryEstimates) -> list[int]:
    """What preflight and the generate tasks of a stage do, without the tasks."""
    sampling = SamplingParams(temperature=0, max_tokens=N_TOKENS)
    calls = tuple(Call(p.stem, p.stem, LoadParams(str(p), N_CTX), sampling) for p in paths)
    plan = Plan("p", "auto", (StagePlan("panel", 1, (), calls, "answer_only", None, 0),), "fail", "panel")
    within = budget(read_machine(), Limits())
    (stage,) = plan_residency(plan, within, estimates.need, CORES).stages
    placed = place(plan, within, estimates.need)
    pool = ModelPool(within, estimates.need, CORES, ModelWorker)
    for call in calls:
        pool.prefetch(placed[call], call.model)

    def ask(call: Call, threads: int) -> int:
        request = GenerateRequest((("user", QUESTION),), sampling, threads=threads, most_threads=CORES)
        return pool.generate(placed[call], call.model, request).completion_tokens

    tokens = in_threads([lambda p=p: ask(p.call, p.threads) for p in stage.placements])
    pool.close()
    return tokens


def in_threads(work: list[Callable[[], int]]) -> list[int]:
    results = [0] * len(work)

    def run(index: int) -> None:
        results[index] = work[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder:
        files = make_variants(Path(folder), ("Q8_0", "Q5_0"))
        paths, estimates = list(files.values()), MemoryEstimates(Path(folder) / "cache")
        ways: dict[str, Callable[[], list[int]]] = {
            "sequential by hand": lambda: sequential(paths),
            "thread-split by hand": lambda: thread_split(paths),
            "auto": lambda: auto(paths, estimates),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            tokens = {}
            for name, way in ways.items():
                started = time.perf_counter()
                tokens[name] = way()
                if turn:
                    seconds[name].append(time.perf_counter() - started)
            if len({tuple(counts) for counts in tokens.values()}) != 1:
                raise SystemExit(f"not the same work: {tokens}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    better = min(medians["sequential by hand"], medians["thread-split by hand"])
    print(f"3 models, {N_TOKENS} tokens each, {CORES} cores, medians of {rounds}")
    for name, median in medians.items():
        print(f"{name:22}{median:7.2f} s   {median / better:.2f} of the better by hand")


if __name__ == "__main__":
    main()
