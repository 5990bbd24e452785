"""What an item of a dataset run costs, and what memory it takes, with 100 items and with 1,000.

`python -m tests.benchmarks.dataset_size [ROUNDS]`: both sizes in turn, ROUNDS times (3), after one uncounted small run.
Two stages, answers of two tokens.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.benchmarks.model_files import SMOLLM
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.project import make_project

SIZES = (100, 1000)
MIB = 2**20
GENERATION = "{temperature: 0.5, max_tokens: 2, n_ctx: 256}"
PIPELINE = f"""base_pipeline:
  stages:
    - {{id: first, model: small, generation: {GENERATION}}}
    - {{id: second, model: small, generation: {GENERATION}}}
"""


def run(folder: Path, n_items: int) -> tuple[float, int, int]:
    """Seconds, Prefect task runs, and this process's RSS at the end."""
    from flows.batch import batch

    dataset = folder / f"{n_items}.jsonl"
    dataset.write_text("".join(json.dumps({"question": f"Name {n} things."}) + "\n" for n in range(n_items)))
    started = time.perf_counter()
    result = asyncio.run(batch(dataset))
    seconds = time.perf_counter() - started
    if result.n_items != n_items or result.n_failed:
        raise SystemExit(f"not the same work: {result}")
    return seconds, asyncio.run(task_runs(result.session_id)), psutil.Process(os.getpid()).memory_info().rss


async def task_runs(session_id: str) -> int:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from llm_core.session_files import load_session
    from llm_core.settings import Settings

    flow_run_id = load_session(Settings().sessions_folder, session_id).flow_run_id
    async with get_client() as client:
        return len(await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    per_item: dict[int, list[float]] = {size: [] for size in SIZES}
    rss_bytes: dict[int, int] = {}
    n_tasks: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as name, prefect_server(Path(name) / "prefect"):
        folder = Path(name)
        make_project(folder, {"small": SMOLLM}, PIPELINE)
        run(folder, SIZES[0])
        for _ in range(rounds):
            for size in SIZES:
                seconds, n_tasks[size], rss_bytes[size] = run(folder, size)
                per_item[size].append(seconds / size)
    medians = {size: statistics.median(values) for size, values in per_item.items()}
    print(f"medians of {rounds}")
    for size, median in medians.items():
        figures = f"{median * 1000:7.1f} ms an item, {median / medians[SIZES[0]]:.2f} of the cost at {SIZES[0]}"
        print(f"{size:5} items: {figures}; {n_tasks[size]} task runs; {rss_bytes[size] / MIB:.0f} MiB at the end")


if __name__ == "__main__":
    main()
