"""Predicted memory against the measured peak of real loads, each driven to a full context.

`python -m tests.benchmarks.memory [GPU_INDEX]`; with a GPU the models lie on it and VRAM is compared too.
"""

import statistics
import sys
import tempfile
import threading
import time
from itertools import product
from pathlib import Path

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.machine import physical_cores, process_vram_bytes, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.worker import ModelWorker
from tests.benchmarks.model_files import make_variants

SHAPES = ((512, 1), (2048, 1), (512, 4), (256, 16), (8192, 1))
"""(tokens per sequence, sequences)"""
MIB = 2**20


def fill(load: LoadParams, name: str) -> tuple[int, int | None]:
    """Measured peak RAM and VRAM of a worker whose every sequence was filled to its last token."""
    free_before = free_vram(load.gpu)
    worker = ModelWorker(load, name)
    peaks: list[int] = []

    def answer() -> None:
        prompt = "word " * (load.n_ctx - 40)
        sampling = SamplingParams(temperature=0, max_tokens=64)
        request = GenerateRequest((("user", prompt),), sampling, threads=physical_cores())
        peaks.append(worker.generate(request).peak_rss_bytes)

    threads = [threading.Thread(target=answer) for _ in range(load.sequences)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vram = None
    if load.gpu is not None:  # NVML does not tell of single processes everywhere
        vram = process_vram_bytes(worker.pid, load.gpu) or free_before - free_vram(load.gpu)
    worker.close()
    return max(peaks), vram


def free_vram(gpu: int | None) -> int:
    return next((g.vram_free for g in read_machine().gpus if g.index == gpu), 0)


def main() -> None:
    gpu = int(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        estimates = MemoryEstimates(Path(folder) / "cache")
        files = make_variants(Path(folder), ("Q8_0", "Q4_0"))
        errors, first_s, cached_s = [], [], []
        print(f"{'file':6}{'n_ctx':>7}{'seq':>5}{'KV':>6}{'device':>8}{'predicted':>11}{'measured':>10}{'error':>8}")
        for (name, path), kv_type, (n_ctx, sequences) in product(files.items(), ("f16", "q8_0"), SHAPES):
            load = LoadParams(str(path), n_ctx, -1 if gpu is not None else 0, sequences, kv_type, gpu)
            started = time.perf_counter()
            need = estimates.need(load)
            first_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            MemoryEstimates(Path(folder) / "cache").need(load)
            cached_s.append(time.perf_counter() - started)
            ram, vram = fill(load, name)
            rows = [("RAM", need.ram_bytes, ram)] if gpu is None else [("VRAM", need.vram_bytes, vram)]
            for device, predicted, measured in rows:
                error = (predicted - measured) / measured if measured else float("nan")
                errors.append(error)
                figures = f"{predicted / MIB:11.1f}{(measured or 0) / MIB:10.1f}{error:8.1%}"
                print(f"{name:6}{n_ctx:7}{sequences:5}{kv_type:>6}{device:>8}{figures}", flush=True)
    absolute = [abs(error) for error in errors]
    print(f"{len(errors)} cases: median error {statistics.median(absolute):.1%}, worst {max(absolute):.1%}")
    print(f"furthest under {min(errors):.1%}")
    print(f"estimate: first {max(first_s):.2f} s at most, cached {max(cached_s) * 1000:.1f} ms at most")


if __name__ == "__main__":
    main()
