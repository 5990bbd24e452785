"""Runs under real memory limits: real models, real budgets, real kernel limits."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows import pools
from flows.pipeline import compile_flow
from flows.result import PipelineFailed, PipelineResult
from llm_core import local_pool
from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import InsufficientMemory, ModelOutOfMemory
from llm_core.generation import GenerateRequest
from llm_core.machine import read_machine
from llm_core.memory import MemoryEstimates
from llm_core.pipeline import load_pipeline
from llm_core.pool import ModelPool
from llm_core.session_files import load_session
from llm_core.settings import Settings
from llm_core.worker import ModelWorker
from tasks.run import Silent, progress
from tests.conftest import REPOSITORY, Project

MIB = 2**20
MODELS = """
defaults: {n_ctx: 2048, temperature: 0, max_tokens: 8}
models:
  q4: {file: q4.gguf}
  q5: {file: q5.gguf}
  q8: {file: q8.gguf}
"""
PANEL = """
base_pipeline:
  execution_mode: MODE
  stages:
    - {id: draft, model: q4}
    - {id: panel, models: [q4, q5, q8], aggregation: concat}
"""
REQUEST = GenerateRequest((("user", "What is ice?"),), SamplingParams(temperature=0, max_tokens=8))


@pytest.fixture
def three_models(project: Project, variants: dict[str, Path]) -> Project:
    """Three files, each of which needs about 230 to 270 MiB."""
    project.models(MODELS)
    for name, quantization in (("q4", "Q4_1"), ("q5", "Q5_0"), ("q8", "Q8_0")):
        project.link_model(variants[quantization], f"{name}.gguf")
    return project


def set_budget(monkeypatch: pytest.MonkeyPatch, ram_bytes: int) -> None:
    """Reserve all memory that is free now but `ram_bytes`."""
    monkeypatch.setenv("GGUF_FLOW_RAM_RESERVE_MB", str((read_machine().ram_available - ram_bytes) // MIB))
    monkeypatch.setenv("MAX_RAM_USAGE_PERCENT", "100")


async def run(project: Project, mode: str, question: str = "What is ice?") -> PipelineResult:
    project.pipeline(PANEL.replace("MODE", mode))
    return await compile_flow(load_pipeline(Settings().pipeline_file))(question=question)


@pytest.mark.usefixtures("prefect_server", "clean_pools")
async def test_second_run_of_a_persistent_pipeline_loads_nothing(three_models: Project) -> None:
    first = await run(three_models, "persistent")
    (pool,) = pools._shared.values()
    assert pool.load_count == 3
    second = await run(three_models, "persistent")
    assert pool.load_count == 3
    assert all(not step.load_s for step in second.steps)
    assert [step.text for step in first.steps] == [step.text for step in second.steps]


@pytest.mark.usefixtures("prefect_server")
async def test_stage_that_does_not_fit_side_by_side_runs_one_after_another_by_itself(
    three_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_budget(monkeypatch, 420 * MIB)  # one model at a time
    most = 0

    class CountWorkers(Silent):
        def token(self, step: str, n_tokens: int) -> None:
            nonlocal most
            children = psutil.Process().children(recursive=True)
            most = max(most, sum("llm_core.worker_child" in child.cmdline() for child in children))

    progress.set(CountWorkers())
    result = await run(three_models, "auto")
    assert [step.id for step in result.steps] == [
        "1 draft: q4",
        "2 panel: q4",
        "2 panel: q5",
        "2 panel: q8",
        "2 panel: concat",
    ]
    assert most == 1


@pytest.mark.usefixtures("prefect_server")
async def test_run_that_can_never_fit_is_refused_before_any_load(
    three_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_budget(monkeypatch, 100 * MIB)
    began: list[str] = []

    class NoteBegin(Silent):
        def begin(self, step: str, model: str) -> None:
            began.append(step)

    progress.set(NoteBegin())
    with pytest.raises(PipelineFailed, match=r"draft needs \d+ MiB of RAM for q4 alone, \d+ MiB available") as failure:
        await run(three_models, "auto")
    assert isinstance(failure.value.cause, InsufficientMemory)
    assert began == []
    assert load_session(three_models.sessions, "session_001").status == "failed"


@pytest.mark.usefixtures("prefect_server")
async def test_parallel_that_does_not_fit_is_refused_with_the_way_out(
    three_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_budget(monkeypatch, 420 * MIB)
    with pytest.raises(PipelineFailed, match=r"panel needs \d+ MiB of RAM for q4 \+ q5 \+ q8, .*set execution_mode"):
        await run(three_models, "parallel")


@pytest.mark.usefixtures("prefect_server")
async def test_two_runs_on_one_machine_take_turns_and_say_so(three_models: Project) -> None:
    lines: list[str] = []
    someone_waits = threading.Event()

    class HoldUntilSomeoneWaits(Silent):
        def token(self, step: str, n_tokens: int) -> None:
            someone_waits.wait(60)

        def say(self, line: str) -> None:
            lines.append(line)
            someone_waits.set()

    progress.set(HoldUntilSomeoneWaits())
    results = await asyncio.gather(run(three_models, "auto"), run(three_models, "auto", "What is snow?"))
    assert {result.status for result in results} == {"completed"}
    assert lines == [f"waiting for process {os.getpid()}, which is using this machine's RAM"]


@pytest.mark.usefixtures("prefect_server")
async def test_what_a_run_had_to_give_up_stands_in_its_session_and_is_said(
    three_models: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    failures = [ModelOutOfMemory("failed to allocate")]

    def start(load: LoadParams, model: str) -> ModelWorker:
        if failures:
            raise failures.pop()
        return ModelWorker(load, model)

    class NoteLines(Silent):
        def say(self, line: str) -> None:
            lines.append(line)

    monkeypatch.setattr(local_pool, "ModelWorker", start)
    progress.set(NoteLines())
    result = await run(three_models, "sequential")  # which prefetches nothing: the first try fails
    note = "q4: out of memory, tried again with other models evicted (failed to allocate)"
    assert result.status == "completed"
    assert result.steps[0].degraded == (note,)
    assert load_session(three_models.sessions, result.session_id).degraded == (note,)
    assert lines == [note]


def test_real_allocation_failure_degrades_and_finishes(smollm: Path, tmp_path: Path) -> None:
    """A load meant for a GPU runs under an address-space limit, so that llama.cpp's allocation really fails."""
    on_gpu = LoadParams(str(smollm), 8192, n_gpu_layers=31, gpu=0)

    def start(load: LoadParams, model: str) -> ModelWorker:
        if load.gpu is None:
            return ModelWorker(load, model)
        before = resource.getrlimit(resource.RLIMIT_AS)
        own = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (max(own, 600 * MIB) + 64 * MIB, before[1]))
        try:
            return ModelWorker(replace(load, sequences=200), model)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    estimates = MemoryEstimates(tmp_path)
    pool = ModelPool(
        {"RAM": 2**40, "GPU 0": 2**40},
        lambda load: estimates.need(replace(load, gpu=None)),
        cores=2,
        start=start,
        lower=lambda load: replace(load, gpu=None, n_gpu_layers=0) if load.gpu is not None else None,
    )
    result = pool.generate(on_gpu, "smol", REQUEST)
    pool.close()
    assert result.text
    assert "tried again with other models evicted" in result.degraded[0]
    assert result.degraded[-1] == "smol: out of memory, runs on the CPU instead of 31 GPU layers"


CGROUP_ROOT = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A cgroup (v1 or v2) of our own; needs root."""
    root = CGROUP_ROOT if CGROUP_ROOT.is_dir() else CGROUP_ROOT.parent
    folder = root / f"gguf-flow-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    if not any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
        folder.rmdir()
        pytest.skip("cgroups made here have no memory controller")
    yield folder
    for _ in range(100):
        try:
            folder.rmdir()
            break
        except OSError:
            time.sleep(0.1)


def run_in(cgroup: Path, limit_bytes: int, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    name = "memory.max" if (cgroup / "memory.max").exists() else "memory.limit_in_bytes"
    (cgroup / name).write_text(str(limit_bytes))
    enter = f"import os; open({str(cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.run(
        [sys.executable, "-c", enter + script, *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=300,
    )


def test_cgroup_limit_counts_as_the_machines_memory(memory_cgroup: Path) -> None:
    script = "from llm_core.machine import read_machine; m = read_machine(); print(m.ram_total, m.ram_available)"
    total, available = map(int, run_in(memory_cgroup, 700 * MIB, script).stdout.split())
    assert total == 700 * MIB
    assert 500 * MIB < available < 700 * MIB


def test_process_that_the_kernel_kills_for_memory_is_recognised_and_the_pool_makes_room(
    memory_cgroup: Path, variants: dict[str, Path], tmp_path: Path
) -> None:
    """Two models with 8192 tokens of KV cache fit one at a time; the pool is told that there is room for both."""
    script = """
import json, sys
from pathlib import Path
from llm_core.generation import GenerateRequest
from llm_core.memory import DeviceNeed, ModelNeed
from llm_core.call_params import LoadParams, SamplingParams
from llm_core.pool import ModelPool
from llm_core.worker import ModelWorker
request = GenerateRequest((("user", "What is ice?"),), SamplingParams(temperature=0, max_tokens=8))
pool = ModelPool({"RAM": 2**40}, lambda load: ModelNeed(DeviceNeed()), 2, ModelWorker)
first, second = (LoadParams(path, 8192) for path in sys.argv[1:])
pool.generate(first, "first", request)
Path("/proc/self/oom_score_adj").write_text("500")  # children inherit it: the second is to be killed, not the first
result = pool.generate(second, "second", request)
print(json.dumps({"text": result.text, "degraded": result.degraded, "left": [s.model for s in pool.status()]}))
pool.close()
"""
    process = run_in(memory_cgroup, 440 * MIB, script, str(variants["Q4_1"]), str(variants["Q8_0"]))
    assert process.returncode == 0, process.stderr
    outcome = json.loads(process.stdout)
    assert outcome["text"]
    assert "second: out of memory, tried again with other models evicted" in outcome["degraded"][0]
    assert "the system had run out of memory" in outcome["degraded"][0]
    assert outcome["left"] == ["second"]


@pytest.mark.usefixtures("prefect_server")
def test_pipeline_too_large_for_parallel_finishes_within_a_kernel_limit(
    three_models: Project, memory_cgroup: Path
) -> None:
    from prefect.settings import get_current_settings

    three_models.models(MODELS.replace("n_ctx: 2048", "n_ctx: 8192"))
    three_models.pipeline(PANEL.replace("MODE", "auto"))
    script = f"""
import os
os.chdir({str(three_models.path)!r})
os.environ["PREFECT_API_URL"] = {str(get_current_settings().api.url)!r}
os.environ["GGUF_FLOW_RAM_RESERVE_MB"] = "64"
os.environ["MAX_RAM_USAGE_PERCENT"] = "100"
import asyncio, json
from flows.pipelines import base
result = asyncio.run(base(question="What is ice?"))
print(json.dumps([result.status, [step.degraded for step in result.steps]]))
"""
    process = run_in(memory_cgroup, 900 * MIB, script)  # all three side by side need 1.2 GiB
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == ["completed", [[], [], [], [], []]]
