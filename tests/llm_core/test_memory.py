"""What a model needs: llama.cpp's own account, held against real loads."""

from dataclasses import replace
from pathlib import Path

import pytest

from llm_core import memory
from llm_core.call_params import LoadParams, SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.gguf_file import read_gguf
from llm_core.images import make_image
from llm_core.machine import read_machine
from llm_core.memory import IMAGE_BYTES, MemoryEstimates, formula
from llm_core.resident import ResidentStatus
from llm_core.status_board import StatusBoard, read_board
from llm_core.worker import ModelWorker
from tests.llm_core.pictures import png
from tests.llm_core.tiny_mmproj import write_tiny_mmproj

MIB = 2**20
KV_BYTES_PER_TOKEN = 30 * 3 * (64 + 64) * 2
"""SmolLM2-135M: 30 layers of 3 KV heads, keys and values of 64 numbers, f16."""


@pytest.fixture
def estimates(tmp_path: Path) -> MemoryEstimates:
    return MemoryEstimates(tmp_path)


def test_kv_cache_is_tokens_times_layers_times_heads(smollm: Path, estimates: MemoryEstimates) -> None:
    need = estimates.need(LoadParams(str(smollm), 2048))
    assert need.source == "llama.cpp"
    assert need.ram.kv_bytes == 2048 * KV_BYTES_PER_TOKEN
    quantized = estimates.need(LoadParams(str(smollm), 2048, kv_type="q8_0"))
    assert quantized.ram.kv_bytes == 2048 * KV_BYTES_PER_TOKEN * 34 // 64


def test_each_sequence_has_a_context_of_its_own_rounded_up_to_256(smollm: Path, estimates: MemoryEstimates) -> None:
    need = estimates.need(LoadParams(str(smollm), 300, sequences=4))
    assert need.ram.kv_bytes == 4 * 512 * KV_BYTES_PER_TOKEN


def test_compute_buffers_are_small_because_only_one_output_is_asked_for(
    smollm: Path, estimates: MemoryEstimates
) -> None:
    need = estimates.need(LoadParams(str(smollm), 2048))
    assert need.ram.compute_bytes < 20 * MIB  # llama.cpp's default reserves 103 MiB


@pytest.mark.parametrize("quantization", ["Q4_1", "Q4_0"])  # llama.cpp keeps a second, repacked copy of Q4_0
def test_prediction_is_that_of_a_real_load(
    variants: dict[str, Path], estimates: MemoryEstimates, quantization: str
) -> None:
    load = LoadParams(str(variants[quantization]), 1024)
    predicted = estimates.need(load).ram_bytes
    worker = ModelWorker(load, "smol")
    request = GenerateRequest((("user", "word " * 980),), SamplingParams(temperature=0, max_tokens=100), threads=2)
    measured = worker.generate(request).peak_rss_bytes
    worker.close()
    assert predicted == pytest.approx(measured, rel=0.08)
    assert predicted > 0.98 * measured


def test_projector_counts_with_its_weights_and_what_it_and_an_image_take(
    smollm: Path, estimates: MemoryEstimates, tmp_path: Path
) -> None:
    blind = LoadParams(str(smollm), 512)
    sees = replace(blind, mmproj=str(write_tiny_mmproj(tmp_path / "eyes.gguf")))
    without, need = estimates.need(blind).ram, estimates.need(sees).ram
    assert need.weights_bytes - without.weights_bytes == 1_498_624  # of its 26 tensors, as llama.cpp loads them
    computing = need.compute_bytes - without.compute_bytes - IMAGE_BYTES - 32 * 32 * 3 * 4
    assert computing == pytest.approx(0.07 * MIB, abs=0.005 * MIB)  # as llama.cpp says when it loads it
    assert need.kv_bytes == without.kv_bytes
    write_tiny_mmproj(tmp_path / "eyes.gguf", "gemma3")
    assert MemoryEstimates(tmp_path).need(sees).ram.weights_bytes < need.weights_bytes, "another file by the same name"


def test_prediction_is_that_of_a_load_that_has_seen_a_photo(
    smollm: Path, estimates: MemoryEstimates, tmp_path: Path
) -> None:
    load = LoadParams(str(smollm), 256, mmproj=str(write_tiny_mmproj(tmp_path / "eyes.gguf")))
    worker = ModelWorker(load, "smol")
    photo = make_image(png(4000, 3000), "photo.png")
    request = GenerateRequest((("user", "word " * 190),), SamplingParams(temperature=0, max_tokens=50), images=(photo,))
    worker.generate(request)
    measured = worker.generate(request).peak_rss_bytes  # now the photo comes to buffers that are in use
    worker.close()
    assert 0.98 * measured < estimates.need(load).ram_bytes < 1.08 * measured


def test_projector_that_a_dry_run_refuses_is_reckoned_by_its_file(smollm: Path, tmp_path: Path) -> None:
    eyes = write_tiny_mmproj(tmp_path / "eyes.gguf")
    load = LoadParams(str(smollm), 512, gpu=0, n_gpu_layers=-1)
    without, need = formula(read_gguf(smollm), load), formula(read_gguf(smollm), replace(load, mmproj=str(eyes)))
    assert need.vram_bytes - without.vram_bytes == eyes.stat().st_size * 5 // 4
    assert need.ram_bytes - without.ram_bytes == IMAGE_BYTES


def test_estimate_is_asked_once_and_read_afterwards_whatever_link_leads_to_the_file(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = LoadParams(str(smollm), 512)
    first = MemoryEstimates(tmp_path).need(load)
    monkeypatch.setattr(memory, "_dry_run", lambda load: pytest.fail("a second dry run"))
    assert MemoryEstimates(tmp_path).need(load) == first
    (tmp_path / "link.gguf").symlink_to(smollm)
    assert MemoryEstimates(tmp_path).need(LoadParams(str(tmp_path / "link.gguf"), 512)) == first
    with pytest.raises(pytest.fail.Exception):
        MemoryEstimates(tmp_path).need(LoadParams(str(smollm), 1024))


def test_damaged_cache_entry_is_made_anew(smollm: Path, tmp_path: Path) -> None:
    load = LoadParams(str(smollm), 512)
    MemoryEstimates(tmp_path).need(load)
    (entry,) = (tmp_path / "memory").glob("*.json")
    entry.write_text("{half")
    assert MemoryEstimates(tmp_path).need(load).ram.kv_bytes == 512 * KV_BYTES_PER_TOKEN
    assert entry.read_text() != "{half"


def test_file_that_a_dry_run_refuses_is_reckoned_by_the_formula_and_marked(
    smollm: Path, estimates: MemoryEstimates, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = LoadParams(str(smollm), 2048)
    exact = estimates.need(load)
    reckoned = formula(read_gguf(smollm), load)
    assert reckoned.source == "formula"
    assert reckoned.ram.kv_bytes == exact.ram.kv_bytes
    assert exact.ram_bytes <= reckoned.ram_bytes <= 1.2 * exact.ram_bytes
    monkeypatch.setattr(memory, "_dry_run", lambda load: {"error": "the child died"})
    assert MemoryEstimates(Path("/nonexistent")).need(load) == reckoned


def test_measured_peak_is_kept_beside_the_prediction(smollm: Path, estimates: MemoryEstimates) -> None:
    load = LoadParams(str(smollm), 512)
    assert estimates.last_measured(smollm) is None
    estimates.measured(load, 190 * MIB, None)
    measured = estimates.last_measured(smollm)
    assert measured
    assert (measured.load, measured.peak_ram_bytes) == (load, 190 * MIB)
    assert measured.predicted_ram_bytes == estimates.need(load).ram_bytes


def test_machine_has_cores_and_memory_and_no_gpu_is_no_error() -> None:
    machine = read_machine()
    assert machine.cores >= 1
    assert 0 < machine.ram_available <= machine.ram_total
    assert isinstance(machine.gpus, tuple)


def test_status_board_shows_what_living_processes_hold(tmp_path: Path) -> None:
    board = StatusBoard(tmp_path)
    board.post([ResidentStatus("smol", LoadParams("/m/smol.gguf", 512), "ready", {"RAM": 5}, 0, True, 2.0)])
    (row,) = read_board(tmp_path)
    assert (row["model"], row["file"], row["bytes"], row["pinned"]) == ("smol", "smol.gguf", {"RAM": 5}, True)
    board.post([])
    assert read_board(tmp_path) == []


def test_status_of_a_killed_process_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "pools").mkdir()
    (tmp_path / "pools" / "x.json").write_text('{"pid": 4194305, "posted": 0, "residents": [{"model": "ghost"}]}')
    assert read_board(tmp_path) == []
    assert list((tmp_path / "pools").iterdir()) == []
