"""Two thousand short requests through eight sequences: nothing leaks, nothing is mixed up."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import GenerationTimeout
from llm_core.generation import GenerateRequest
from llm_core.machine import physical_cores
from llm_core.worker import ModelWorker

N_REQUESTS, N_SEQUENCES = 2000, 8
WORDS = (
    "apple river stone cloud tiger piano garden window bridge castle forest island mirror orange pencil rocket silver "
    "summer thunder velvet winter yellow anchor basket candle dragon engine falcon guitar hammer jacket kitten lemon "
    "magnet needle ocean pepper quartz rabbit saddle tunnel umbrella violin walnut zebra bottle camera desert helmet"
).split()
EXAMPLES = tuple(
    turn
    for word in ("seven", "house", "garlic", "doctor", "circle")
    for turn in (("user", word), ("assistant", f"{word} {word} {word}"))
)


class Cancelled(Exception):
    pass


def one(worker: ModelWorker, number: int) -> str:
    """Ask for an echo of one word, or give up on the way; what came of it."""
    rng = random.Random(number)
    word, fate = rng.choice(WORDS), rng.choices(("answered", "cancelled", "timed out"), (80, 12, 8))[0]
    messages = (*EXAMPLES[: 2 * rng.randint(4, 5)], ("user", word))
    if fate == "answered":
        short = SamplingParams(temperature=0, deterministic=False, max_tokens=rng.randint(6, 12))
        text = worker.generate(GenerateRequest(messages, short)).text
        assert [other for other in WORDS if other in text] == [word]
        return fate
    endless = SamplingParams(
        deterministic=False, max_tokens=400, timeout_s=0.05 if fate == "timed out" else None, logit_bias=((" the", 20),)
    )
    last = rng.randint(1, 5)

    def give_up(text: str, n_tokens: int) -> None:
        if fate == "cancelled" and n_tokens >= last:
            raise Cancelled

    try:
        worker.generate(GenerateRequest((("user", f"Write a very long story of a {word}."),), endless), give_up)
    except Cancelled:
        return "cancelled"
    except GenerationTimeout:
        return "timed out"
    return "ended by itself"


def test_two_thousand_requests_with_cancels_and_time_outs(variants: dict[str, Path]) -> None:
    worker = ModelWorker(LoadParams(str(variants["Q4_0"]), 512, sequences=N_SEQUENCES), "smol")  # batches best
    worker.use_threads(physical_cores())
    process = psutil.Process(worker.pid)
    rss_bytes: list[int] = []

    def watch() -> None:
        while not stop.wait(0.5):
            rss_bytes.append(process.memory_info().rss)

    stop = threading.Event()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with ThreadPoolExecutor(N_SEQUENCES + 4) as askers:  # some always wait
        fates = Counter(askers.map(lambda number: one(worker, number), range(N_REQUESTS)))
    stop.set()
    watcher.join()
    assert sum(fates.values()) == N_REQUESTS
    assert fates["answered"] > 1500
    assert fates["cancelled"] > 150
    assert fates["timed out"] > 100
    warm = rss_bytes[len(rss_bytes) // 4]
    assert max(rss_bytes[len(rss_bytes) // 4 :]) <= warm * 1.05
    with ThreadPoolExecutor(N_SEQUENCES) as askers:  # every sequence is free again: this many at once still answer
        assert len(list(askers.map(lambda number: one(worker, number), range(N_SEQUENCES)))) == N_SEQUENCES
    worker.close()
