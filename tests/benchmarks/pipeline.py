"""A draft, a critique and a final answer by three models: as a pipeline of ours, and written by hand in three ways.

`python -m tests.benchmarks.pipeline [ROUNDS]`: all ways in turn, ROUNDS times (3), after one uncounted round; one
question, then four in a row. Loading and unloading count, imports and starting the Prefect server do not. Ours finds
its memory estimates and file hashes cached, as every run but the first does. Needs `pip install 'gguf-flow[bench]'`.
"""

import asyncio
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from llm_core.pipeline import load_pipeline
from llm_core.prompts import user_message
from llm_core.settings import Settings
from tests.benchmarks.by_hand import CORES, N_CTX, N_TOKENS, WAYS, Load
from tests.benchmarks.model_files import make_variants
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.rounds import check_same_work, in_turn


@dataclass(frozen=True)
class Stage:
    id: str
    model: str
    instructions: str | None = None
    inputs: tuple[str, ...] = ()


STAGES = (
    Stage("draft", "Q4_1"),
    Stage("critique", "Q8_0", "Criticise the draft at length, sentence by sentence.", ("draft",)),
    Stage("final", "Q4_0", "Write a long new story. Use the draft and the critique.", ("draft", "critique")),
)
QUESTIONS = tuple(
    f"Write a long story about a {hero} and the sea. Begin with 'Once upon a time'."
    for hero in ("lighthouse keeper", "painter", "queen", "robot")
)


@dataclass(frozen=True)
class Outcome:
    """(prompt, completion) tokens of every step, and the seconds of them that went into loading."""

    counts: tuple[tuple[int, int], ...]
    load_s: float


def ours(mode: str, questions: tuple[str, ...]) -> Outcome:
    """The pipeline named after its execution mode, run as a Prefect flow."""
    from flows.pipeline import compile_flow
    from flows.pools import close_shared_pools

    settings = Settings()
    flow = compile_flow(load_pipeline(settings.pipeline_file, mode), settings)

    async def answer_all() -> Outcome:
        steps = [step for question in questions for step in (await flow(question=question)).steps]
        return Outcome(tuple((s.prompt_tokens, s.completion_tokens) for s in steps), sum(s.load_s for s in steps))

    outcome = asyncio.run(answer_all())
    close_shared_pools()
    return outcome


def by_hand(load: Load, files: dict[str, Path], questions: tuple[str, ...]) -> Outcome:
    """Load all, answer, unload all."""
    started = time.perf_counter()
    counts: list[tuple[int, int]] = []
    with ExitStack() as loaded:
        asks = {stage.id: loaded.enter_context(load(files[stage.model])) for stage in STAGES}
        load_s = time.perf_counter() - started
        for question in questions:
            texts: dict[str, str] = {}
            for stage in STAGES:
                inputs = {source: texts[source] for source in stage.inputs}
                answer = asks[stage.id](user_message(question, inputs, stage.instructions))
                texts[stage.id] = answer.text
                counts.append((answer.prompt_tokens, answer.completion_tokens))
    return Outcome(tuple(counts), load_s)


def write_project(folder: Path, files: dict[str, Path]) -> None:
    """config/ with the stages as one pipeline for each execution mode, and the variables that point there."""
    defaults = {"n_ctx": N_CTX, "n_gpu_layers": 0, "temperature": 0, "max_tokens": N_TOKENS, "flash_attention": True}
    models = {name: {"file": str(path)} for name, path in files.items()}
    stages = [
        {"id": s.id, "model": s.model, "instructions": s.instructions, "input_from": list(s.inputs) or None}
        for s in STAGES
    ]
    pipelines = {mode: {"execution_mode": mode, "stages": stages} for mode in ("auto", "persistent")}
    config = folder / "config"
    config.mkdir()
    (config / "models.yaml").write_text(yaml.safe_dump({"defaults": defaults, "models": models}))
    (config / "pipeline.yaml").write_text(yaml.safe_dump({"pipelines": pipelines}))
    for name in ("config", "models", "sessions", "cache"):
        (folder / name).mkdir(exist_ok=True)
        os.environ[f"GGUF_FLOW_{name.upper()}_DIR"] = str(folder / name)


def compare(title: str, ways: dict[str, Callable[[], Outcome]], rounds: int) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    loads: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        outcomes: dict[str, Outcome] = {}
        for name in in_turn([*ways], turn):
            started = time.perf_counter()
            outcomes[name] = ways[name]()
            if turn:
                seconds[name].append(time.perf_counter() - started)
                loads[name].append(outcomes[name].load_s)
        check_same_work({name: outcome.counts for name, outcome in outcomes.items()}, N_TOKENS)
    print(f"\n{title}: {N_TOKENS} tokens per step, {CORES} cores, medians of {rounds}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        load = f"{statistics.median(loads[name]):6.2f} s of it loading"
        print(f"{name:18}{median:8.2f} s{median / medians['ours']:7.2f} of ours   {load}", flush=True)


def require_libraries() -> None:
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
    for module in ("langchain_community.chat_models", "haystack_integrations.components.generators.llama_cpp"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise SystemExit(f"{error}: pip install 'gguf-flow[bench]'") from None


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    require_libraries()
    with tempfile.TemporaryDirectory() as name, prefect_server(Path(name) / "prefect"):
        files = make_variants(Path(name), ("Q8_0", "Q4_0"))
        write_project(Path(name), files)
        for mode, questions in (("auto", QUESTIONS[:1]), ("persistent", QUESTIONS)):
            ways: dict[str, Callable[[], Outcome]] = {"ours": partial(ours, mode, questions)}
            ways |= {way: partial(by_hand, load, files, questions) for way, load in WAYS.items()}
            compare(f"{len(questions)} question(s), ours in mode {mode}", ways, rounds)


if __name__ == "__main__":
    main()
