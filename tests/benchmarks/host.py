"""What the model host costs: the same answers from it and from a pool in this process.

`python -m tests.benchmarks.host [ROUNDS]`: both in turn, ROUNDS times (5), after one uncounted round. Model time is
what the answers themselves say: TTFT and the tokens after it. Loading is not counted.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.host_pool import HostPool
from llm_core.local_pool import local_pool
from llm_core.machine import physical_cores
from llm_core.memory import MemoryEstimates
from llm_core.pool_protocol import Pool
from llm_core.settings import Settings
from tests.benchmarks.model_files import SMOLLM
from tests.benchmarks.project import make_project
from tests.llm_core.test_host import running_host

N_TOKENS, N_CTX = 256, 512
REQUEST = GenerateRequest(
    (("user", "Write a long story about a sailor and two horses."),),
    SamplingParams(temperature=0, max_tokens=N_TOKENS, logit_bias=(("<|im_end|>", -100.0),)),
    threads=physical_cores(),
)


def answer(pool: Pool, load: LoadParams) -> tuple[float, float]:
    """(model time, wall time) of one answer, streamed as a watched run has it."""
    began = time.perf_counter()
    result = pool.generate(load, "smollm2", REQUEST, lambda text, n: None)
    wall_s = time.perf_counter() - began
    assert result.completion_tokens == N_TOKENS
    return result.ttft_s + (result.tpot_s or 0.0) * (N_TOKENS - 1), wall_s


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        make_project(Path(folder), {"smollm2": SMOLLM}, "base_pipeline: {stages: [{id: a, model: smollm2}]}\n")
        settings = Settings()
        load = LoadParams(str(SMOLLM), N_CTX)
        own = local_pool(settings, MemoryEstimates(settings.cache_folder))
        with running_host(settings.cache_folder):
            hosted = HostPool(settings.cache_folder)
            times: dict[str, list[tuple[float, float]]] = {"in this process": [], "model host": []}
            for counted in [False] + [True] * rounds:
                for (_, found), pool in zip(times.items(), (own, hosted), strict=True):
                    measured = answer(pool, load)
                    found.extend([measured] if counted else [])
            hosted.close()
        own.close()
    print(f"one answer of {N_TOKENS} tokens, medians of {rounds}")
    first: tuple[float, float] | None = None
    for name, found in times.items():
        medians = statistics.median(m for m, _ in found), statistics.median(w for _, w in found)
        first = first or medians
        ratios = medians[0] / first[0], medians[1] / first[1]
        print(f"{name:<16} model {medians[0]:5.2f} s ({ratios[0]:.2f})   wall {medians[1]:5.2f} s ({ratios[1]:.2f})")


if __name__ == "__main__":
    main()
