"""What Prefect and our layers add to the models' own time, on a running server.

`python -m tests.benchmarks.orchestration [ROUNDS]`: a chain of six stages through the flow, and the same six calls in a
plain loop on the same pool, in turn, ROUNDS times (5), after one uncounted round.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from llm_core.machine import physical_cores, read_machine
from tests.benchmarks.model_files import SMOLLM
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.project import make_project

N_STAGES = 6
QUESTION = "Write a long story about a lighthouse keeper and the sea."
STAGE = (
    "    - {{id: s{n}, model: small, input_from: {inputs}, generation: {{temperature: 0, max_tokens: {n_tokens}}}}}\n"
)


def pipelines() -> str:
    """`short` has answers of 4 tokens, `long` some five seconds of model time in all."""
    text = "pipelines:\n"
    for name, n_tokens in (("short", 4), ("long", 100)):
        text += f"  {name}:\n   stages:\n"
        for n in range(N_STAGES):
            inputs = f"[s{n - 1}]" if n else "[]"
            text += STAGE.format(n=n, inputs=inputs, n_tokens=n_tokens)
    return text


def through_flow(name: str) -> tuple[float, float, list[int]]:
    """Wall time, the time of the models within it, and the tokens of each step."""
    from flows.pipeline import compile_flow
    from llm_core.pipeline import load_pipeline
    from llm_core.settings import Settings

    flow = compile_flow(load_pipeline(Settings().pipeline_file, name))

    async def run() -> tuple[float, float, list[int]]:
        started = time.perf_counter()
        result = await flow(question=QUESTION)
        wall_s = time.perf_counter() - started
        model_s = sum((step.ended - step.started).total_seconds() for step in result.steps)
        return wall_s, model_s, [step.completion_tokens for step in result.steps]

    return asyncio.run(run())


def plain_loop(name: str) -> tuple[float, list[int]]:
    """The same calls on the same pool: load, six answers, unload."""
    from llm_core.generation import GenerateRequest
    from llm_core.machine import budget
    from llm_core.memory import MemoryEstimates
    from llm_core.pipeline import load_pipeline
    from llm_core.planner import make_plan
    from llm_core.pool import ModelPool
    from llm_core.prompts import chat, user_message
    from llm_core.registry import load_registry
    from llm_core.settings import Settings
    from llm_core.worker import ModelWorker

    settings = Settings()
    plan = make_plan(load_pipeline(settings.pipeline_file, name), load_registry(settings))
    estimates = MemoryEstimates(settings.cache_folder)
    started = time.perf_counter()
    pool = ModelPool(budget(read_machine(), settings.limits), estimates.need, physical_cores(), ModelWorker)
    texts: dict[str, str] = {}
    counts = []
    for stage in plan.stages:
        (call,) = stage.calls
        messages = chat(call.system_prompt, user_message(QUESTION, texts, call.instructions))
        result = pool.generate(
            call.load, call.model, GenerateRequest(messages, call.sampling, threads=physical_cores())
        )
        texts = {stage.id: result.text}
        counts.append(result.completion_tokens)
    pool.close()
    return time.perf_counter() - started, counts


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name, prefect_server(Path(name) / "prefect"):
        folder = Path(name)
        make_project(folder, {"small": SMOLLM}, pipelines())
        n_tasks = 2 * N_STAGES  # a preflight and a generate each
        print(f"{N_STAGES} stages, {n_tasks} tasks, medians of {rounds}")
        for name in ("short", "long"):
            walls, overheads, loops = [], [], []
            for turn in range(rounds + 1):
                wall_s, model_s, counts = through_flow(name)
                loop_s, loop_counts = plain_loop(name)
                if counts != loop_counts:
                    raise SystemExit(f"not the same work: {counts} and {loop_counts} tokens")
                if turn:
                    walls.append(wall_s)
                    overheads.append(wall_s - model_s)
                    loops.append(loop_s)
            wall_s, overhead_s, loop_s = map(statistics.median, (walls, overheads, loops))
            print(
                f"{name:6} flow {wall_s:6.2f} s, of it not the models' {overhead_s:.2f} s (0.3 s + "
                f"{(overhead_s - 0.3) / n_tasks * 1000:.0f} ms a task); plain loop {loop_s:6.2f} s; "
                f"flow / loop {wall_s / loop_s:.2f}"
            )


if __name__ == "__main__":
    main()
