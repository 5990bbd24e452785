"""Several requests to one GGUF file, also beside a busy process, and one that rewrites a text: ours against
llama_cpp.Llama and llama-server; and what a shared prefix saves.

`python -m tests.benchmarks.engine [ROUNDS [Q4_1|Q4_0|Q8_0 …]]`: all ways in turn, ROUNDS times (3), after one
uncounted round; on all three files unless some are named.
llama-server takes part where the environment variable LLAMA_SERVER names its binary. Loading is not counted.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.machine import physical_cores
from llm_core.worker import ModelWorker
from tests.benchmarks.llama_server import asker, serve
from tests.benchmarks.model_files import make_variants
from tests.benchmarks.rounds import check_same_work, in_turn
from tests.busy_process import busy_process

N_CTX, N_TOKENS, REWRITTEN_TOKENS = 512, 96, 128
BATCHES = (1, 4, 8, 16)
BATCHES_ON_BUSY_MACHINE = (1, 4)
TTFT_REQUESTS, TTFT_CTX, TTFT_TOKENS = 16, 1024, 16
CORES = physical_cores()

Counts = tuple[int, int]
"""(prompt tokens, completion tokens)"""
Way = Callable[[list[str]], list[Counts]]


def chats() -> Iterator[str]:
    """Prompts without end, no two alike, whose answers are longer than `N_TOKENS`; `check_same_work` sees to it."""
    heroes = ("sailor", "baker", "queen", "robot", "farmer", "painter", "wolf", "doctor")
    for number in itertools.count(2):
        hero = heroes[number % len(heroes)]
        yield f"Write a long story about a {hero} and {number} horses. Begin with 'Once upon a time'."


def revisions() -> Iterator[str]:
    """What a stage that mends a draft is asked; no two alike, and most answers are longer than `REWRITTEN_TOKENS`."""
    heroes = ("baker", "farmer", "painter", "doctor", "sailor", "miller", "tailor", "weaver")
    beasts = ("mare", "goat", "hound", "cow", "mule")
    for number in itertools.count(2):
        hero, beast = heroes[number % len(heroes)], beasts[number % len(beasts)]
        yield (
            f"Correct the mistakes in this text and write it again:\n\nThe {hero} had {number} animals and he keep "
            "them in a long stable by the river. Every morning he got up before the sun, lit the oven, and "
            "brought each of them a warm loaf of yesterday's bread. The animals was very fond of him, and when he "
            "walked through the village they followed him like dogs. One day a rich merchant came and offer him a "
            f"bag of gold for the black {beast}. The {hero} thought about it for three days and three nights, and "
            "then he said no, because a friend is not for sale. The merchant laughed and went away, but in "
            "winter, when the snow lay deep and his cart was stuck on the hill, it was the animals of the stable "
            "that pulled him out. From that day on he bring them a sack of apples every year, and nobody in the "
            "village ever again spoke of gold."
        )


@contextmanager
def ours(path: Path, requests: int, n_tokens: int = N_TOKENS, *, lookup: bool = True) -> Iterator[Way]:
    """One child process that decodes up to `requests` answers together."""
    worker = ModelWorker(LoadParams(str(path), N_CTX, sequences=requests), path.stem)
    worker.use_threads(CORES)
    # Decoded together, and with what earlier prompts left in the cache, as all the others do.
    sampling = SamplingParams(temperature=0, max_tokens=n_tokens, deterministic=False, prompt_lookup=lookup)

    def ask(prompt: str) -> Counts:
        result = worker.generate(GenerateRequest((("user", prompt),), sampling, threads=CORES))
        return result.prompt_tokens, result.completion_tokens

    def ask_all(prompts: list[str]) -> list[Counts]:
        with ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(ask, prompts))

    try:
        yield ask_all
    finally:
        worker.close()


@contextmanager
def by_hand(path: Path, *, flash_attention: bool, lookup: int = 0, n_tokens: int = N_TOKENS) -> Iterator[Way]:
    """One request after another, which is all that `Llama` can; with so many tokens guessed by its own lookup."""
    threads = {"n_threads": CORES, "n_threads_batch": CORES}
    draft = LlamaPromptLookupDecoding(num_pred_tokens=lookup) if lookup else None
    # verbose=False would swap stdout and stderr away at every call; make_variants has silenced the log.
    model = Llama(str(path), n_ctx=N_CTX, flash_attn=flash_attention, draft_model=draft, verbose=True, **threads)

    def ask(prompt: str) -> Counts:
        chat = [{"role": "user", "content": prompt}]
        usage = model.create_chat_completion(chat, temperature=0, max_tokens=n_tokens)["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    try:
        yield lambda prompts: [ask(prompt) for prompt in prompts]
    finally:
        model.close()


def speeds(
    ways: dict[str, Way],
    prompts: Iterator[str],
    requests: int,
    rounds: int,
    n_tokens: int = N_TOKENS,
    *,
    skip_short: bool = False,
) -> dict[str, float]:
    """Median tokens/s of each way. A round's prompts are the same for all, and new, so that no cache knows them.

    Args:
        skip_short: leave a round out, for all, where somebody's answer ended before `n_tokens`; ten times as many
            rounds are tried at most.
    """
    measured: dict[str, list[float]] = {name: [] for name in ways}
    turn = 0
    for _ in range((rounds + 1) * (10 if skip_short else 1)):
        if turn > rounds:
            break
        asked = list(itertools.islice(prompts, requests))
        counts: dict[str, list[Counts]] = {}
        took_s: dict[str, float] = {}
        for name in in_turn([*ways], turn):
            started = time.perf_counter()
            counts[name] = ways[name](asked)
            took_s[name] = time.perf_counter() - started
        if skip_short and any(n < n_tokens for answers in counts.values() for _, n in answers):
            continue
        check_same_work(counts, n_tokens)
        for name, values in measured.items():
            if turn:
                values.append(requests * n_tokens / took_s[name])
        turn += 1
    if turn <= rounds:
        raise SystemExit(f"too many answers ended before {n_tokens} tokens")
    return {name: statistics.median(values) for name, values in measured.items()}


def throughput(files: dict[str, Path], rounds: int, batches: tuple[int, ...]) -> None:
    binary = os.environ.get("LLAMA_SERVER")
    others = ["Llama", "Llama fa", *(["llama-server"] if binary else [])]
    print(f"tokens/s, {N_TOKENS} tokens each, {CORES} cores, medians of {rounds}; fa: flash_attn=True")
    heads = "".join(f"{name:>14}" for name in ["ours", *others]) + "".join(f"{'/ ' + name:>15}" for name in others)
    print(f"{'file':6}{'requests':>9}{heads}" + ("" if binary else "   (LLAMA_SERVER is not set)"))
    for name, path in files.items():
        prompts = chats()
        with ExitStack() as loaded:
            ways = {
                "Llama": loaded.enter_context(by_hand(path, flash_attention=False)),
                "Llama fa": loaded.enter_context(by_hand(path, flash_attention=True)),
            }
            if binary:
                url = loaded.enter_context(serve(binary, path, max(BATCHES), N_CTX, CORES))
                ways["llama-server"] = loaded.enter_context(asker(url, N_TOKENS))
            for requests in batches:
                with ours(path, requests) as our_way:
                    median = speeds({"ours": our_way, **ways}, prompts, requests, rounds)
                figures = "".join(f"{median[way]:14.1f}" for way in ["ours", *others])
                ratios = "".join(f"{median['ours'] / median[way]:15.2f}" for way in others)
                print(f"{name:6}{requests:9}{figures}{ratios}", flush=True)


def rewriting(files: dict[str, Path], rounds: int) -> None:
    """One request at a time whose answer repeats much of its prompt, as revisions and syntheses do."""
    binary, n = os.environ.get("LLAMA_SERVER"), REWRITTEN_TOKENS
    print(f"\ntokens/s (ours / it) of one request that rewrites a text, {n} tokens, {CORES} cores, medians of {rounds}")
    for name, path in files.items():
        with ExitStack() as loaded:
            ways = {
                "ours": loaded.enter_context(ours(path, 1, n)),
                "ours, no lookup": loaded.enter_context(ours(path, 1, n, lookup=False)),
                "Llama": loaded.enter_context(by_hand(path, flash_attention=False, n_tokens=n)),
                "Llama fa": loaded.enter_context(by_hand(path, flash_attention=True, n_tokens=n)),
                "Llama fa lookup": loaded.enter_context(by_hand(path, flash_attention=True, lookup=2, n_tokens=n)),
            }
            if binary:
                url = loaded.enter_context(serve(binary, path, 1, N_CTX, CORES))
                ways["llama-server"] = loaded.enter_context(asker(url, n))
            median = speeds(ways, revisions(), 1, rounds, n, skip_short=True)
        others = "".join(f"{way:>17} {m:6.1f} ({median['ours'] / m:.2f})" for way, m in median.items() if way != "ours")
        print(f"{name:6} ours {median['ours']:6.1f}{others}", flush=True)


def first_token_s(worker: ModelWorker, system: str, question: str) -> tuple[float, int]:
    """From the question to its first token, as the caller sees it; and the tokens of the prompt."""
    arrivals: list[float] = []
    sampling = SamplingParams(temperature=0, max_tokens=TTFT_TOKENS, deterministic=False)
    request = GenerateRequest((("system", system), ("user", question)), sampling, threads=CORES)
    started = time.perf_counter()
    result = worker.generate(request, lambda text, n: arrivals.append(time.perf_counter()))
    return arrivals[0] - started, result.prompt_tokens


def shared_prefix(files: dict[str, Path], rounds: int) -> None:
    """The first request to a system prompt prefills it; the later ones come when it has been answered."""
    print(f"\nours: TTFT in ms, one system prompt, {TTFT_REQUESTS} requests, {CORES} cores, medians of {rounds} rounds")
    print(f"{'file':6}{'tokens':>8}{'first':>9}{'one by one':>12}{'/ first':>9}{'at once':>10}{'/ first':>9}")
    questions = list(itertools.islice(chats(), TTFT_REQUESTS))
    for name, path in files.items():
        worker = ModelWorker(LoadParams(str(path), TTFT_CTX, sequences=TTFT_REQUESTS), path.stem)
        worker.use_threads(CORES)
        first: list[float] = []
        later: dict[bool, list[float]] = {False: [], True: []}
        for turn, at_once in itertools.product(range(rounds + 1), later):
            # It begins differently each time, else the first request would find it there.
            system = f"{turn} {at_once}. " + "Answer in plain words, be brief, and never make anything up. " * 26
            head, tokens = first_token_s(worker, system, questions[0])
            with ThreadPoolExecutor(len(questions) if at_once else 1) as threads:
                rest = [s for s, _ in threads.map(lambda q: first_token_s(worker, system, q), questions[1:])]  # noqa: B023
            if turn:
                first.append(head)
                later[at_once] += rest
        worker.close()
        head, alone, together = (statistics.median(values) * 1000 for values in (first, later[False], later[True]))
        print(f"{name:6}{tokens:8}{head:9.1f}{alone:12.1f}{alone / head:9.2f}{together:10.1f}{together / head:9.2f}")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as folder:
        made = make_variants(Path(folder), ("Q4_0", "Q8_0"))
        files = {name: made[name] for name in sys.argv[2:] or made}
        throughput(files, rounds, BATCHES)
        print("\nbeside one busy process:")
        with busy_process():
            throughput(files, rounds, BATCHES_ON_BUSY_MACHINE)
        rewriting(files, rounds)
        shared_prefix(files, rounds)


if __name__ == "__main__":
    main()
