"""What only a real NVIDIA GPU and a CUDA build of llama.cpp can show; skipped without them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.machine import Limits, budget, device, read_machine
from llm_core.memory import MemoryEstimates
from llm_core.placement import fitting_layers
from llm_core.pool import ModelPool
from llm_core.worker import ModelWorker

LAYERS = 31
"""Of SmolLM2-135M: 30 blocks and the output layer."""
LIMITS = Limits(gpu_index=0, vram_reserve_bytes=0, max_vram_percent=100, ram_reserve_bytes=0, max_ram_percent=100)
REQUEST = GenerateRequest((("user", "What is ice?"),), SamplingParams(temperature=0, max_tokens=24))


def _has_cuda() -> bool:
    if not read_machine().gpus:
        return False
    probe = "import llama_cpp, sys; sys.exit(not llama_cpp.llama_supports_gpu_offload())"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not _has_cuda(), reason="needs an NVIDIA GPU and a CUDA build of llama.cpp")


@pytest.fixture
def estimates(tmp_path: Path) -> MemoryEstimates:
    return MemoryEstimates(tmp_path)


@contextmanager
def vram_taken(leaving_bytes: int) -> Iterator[None]:
    """Another process holds all of GPU 0 but so many bytes."""
    pytest.importorskip("torch")
    script = (
        "import sys, torch\n"
        "free, _ = torch.cuda.mem_get_info(0)\n"
        f"hog = torch.empty(free - {leaving_bytes}, dtype=torch.uint8, device='cuda:0')\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    hog = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert hog.stdout
        assert hog.stdout.readline() == "ready\n"
        yield
    finally:
        hog.kill()
        hog.wait()


def test_nvml_tells_name_and_memory_of_the_gpu() -> None:
    gpu = read_machine().gpus[0]
    assert gpu.index == 0
    assert gpu.name
    assert 0 < gpu.vram_free <= gpu.vram_total


@pytest.mark.parametrize("layers", [-1, 20, 5])
def test_predicted_vram_is_that_of_a_real_load(smollm: Path, estimates: MemoryEstimates, layers: int) -> None:
    load = LoadParams(str(smollm), 4096, n_gpu_layers=layers, gpu=0)
    need = estimates.need(load)
    assert need.source == "llama.cpp"
    before = read_machine().gpus[0].vram_free
    worker = ModelWorker(load, "smol")
    result = worker.generate(REQUEST)
    taken = before - read_machine().gpus[0].vram_free
    worker.close()
    measured = result.peak_vram_bytes or taken
    print(f"layers {layers}: predicted {need.vram_bytes / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB")
    assert need.vram_bytes == pytest.approx(measured, rel=0.08)


def test_gpu_answers_what_the_cpu_answers_at_temperature_zero(smollm: Path) -> None:
    texts = []
    for load in (LoadParams(str(smollm), 512), LoadParams(str(smollm), 512, n_gpu_layers=-1, gpu=0)):
        worker = ModelWorker(load, "smol")
        texts.append(worker.generate(REQUEST).text)
        worker.close()
    assert texts[0][:20] == texts[1][:20]


def test_model_on_the_cpu_takes_no_vram(smollm: Path) -> None:
    before = read_machine().gpus[0].vram_free
    worker = ModelWorker(LoadParams(str(smollm), 512), "smol")
    worker.generate(REQUEST)
    assert abs(before - read_machine().gpus[0].vram_free) < 2**20
    worker.close()


def test_layers_that_fit_a_crowded_gpu_are_found_and_load(smollm: Path, estimates: MemoryEstimates) -> None:
    load = LoadParams(str(smollm), 4096, gpu=0)
    whole = estimates.need(replace(load, n_gpu_layers=LAYERS)).vram_bytes
    least = estimates.need(replace(load, n_gpu_layers=1)).vram_bytes
    with vram_taken(leaving_bytes=(whole + least) // 2):
        free = budget(read_machine(), LIMITS)[device(0)]
        layers = fitting_layers(load, LAYERS, free, estimates.need)
        assert 0 < layers < LAYERS
        worker = ModelWorker(replace(load, n_gpu_layers=layers), "smol")
        assert worker.generate(REQUEST).text
        worker.close()


def test_real_cuda_out_of_memory_degrades_and_answers(smollm: Path, estimates: MemoryEstimates) -> None:
    """The pool is told of memory that is not there: as if another process took it between plan and load."""
    load = LoadParams(str(smollm), 8192, n_gpu_layers=LAYERS, gpu=0)
    pool = ModelPool(
        {"RAM": 2**36, device(0): 2**36},
        estimates.need,
        cores=4,
        start=ModelWorker,
        lower=lambda load: replace(load, n_gpu_layers=0, gpu=None) if load.gpu is not None else None,
    )
    context = estimates.need(load).vram.process_bytes  # type: ignore[union-attr]
    with vram_taken(leaving_bytes=context + 64 * 2**20):
        result = pool.generate(load, "smol", REQUEST)
    pool.close()
    assert result.text
    assert result.degraded[-1] == "smol: out of memory, runs on the CPU instead of 31 GPU layers"
