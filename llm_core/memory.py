"""What one model needs in RAM and VRAM, asked of llama.cpp itself, and what it was measured to need."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_core.atomic_write import write_whole
from llm_core.call_params import LoadParams
from llm_core.child_process import child_environment
from llm_core.gguf_file import GgufFile, read_gguf
from llm_core.machine import RAM, device

DRY_RUN_LIMIT_S = 60.0
CUDA_CONTEXT_BYTES = 500 * 2**20
"""VRAM of a process's CUDA context and kernels where NVML does not tell; an assumption, large on purpose."""
FORMULA_PROCESS_BYTES = 80 * 2**20
"""RAM of the child's Python, libraries and vocabulary, for the formula: SmolLM2's child was measured at 60 MiB."""
IMAGE_BYTES = 80 * 2**20
"""RAM in which an image is unpacked: a photo of 12 megapixels, measured as PNG; more for several at once."""
_KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
"""Per value: ggml blocks of 32 values take 34 (q8_0) and 18 (q4_0) bytes."""


@dataclass(frozen=True)
class DeviceNeed:
    """Bytes on one device."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    process_bytes: int = 0
    """Of the process itself: Python, libraries, vocabulary, graphs; on a GPU its CUDA context."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.process_bytes


@dataclass(frozen=True)
class ModelNeed:
    """RAM, and VRAM on the GPU that the load names (`None` for a load on the CPU alone)."""

    ram: DeviceNeed
    vram: DeviceNeed | None = None
    gpu: int | None = None
    source: str = "llama.cpp"
    """`llama.cpp`: its own account from a dry run; `formula`: reckoned from the file's header."""

    @property
    def ram_bytes(self) -> int:
        return self.ram.total_bytes

    @property
    def vram_bytes(self) -> int:
        return self.vram.total_bytes if self.vram else 0


def by_device(need: ModelNeed) -> dict[str, int]:
    vram = {device(need.gpu): need.vram_bytes} if need.gpu is not None else {}
    return {RAM: need.ram_bytes, **vram}


@dataclass(frozen=True)
class Measured:
    """A real load, beside its prediction; bytes."""

    load: LoadParams
    predicted_ram_bytes: int
    peak_ram_bytes: int
    predicted_vram_bytes: int
    peak_vram_bytes: int | None


class MemoryEstimates:
    """Needs of models, kept on disk by file, parameters and llama.cpp build.

    Args:
        cache_dir: where estimates and measurements are kept; safe to delete.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "memory"
        self._known: dict[LoadParams, ModelNeed] = {}
        self._peaks: dict[LoadParams, int] = {}

    def need(self, load: LoadParams) -> ModelNeed:
        """The need of one load; the first time it takes a dry run of about half a second."""
        if load not in self._known:
            self._known[load] = self._read(load) or self._ask(load)
        return self._known[load]

    def measured(self, load: LoadParams, peak_ram_bytes: int, peak_vram_bytes: int | None) -> None:
        """Keep what a real load was seen to need, beside what was predicted for it."""
        if self._peaks.get(load, 0) >= peak_ram_bytes:
            return
        self._peaks[load] = peak_ram_bytes
        need = self.need(load)
        last = Measured(load, need.ram_bytes, peak_ram_bytes, need.vram_bytes, peak_vram_bytes)
        self._save(self._measured_file(Path(load.path)), asdict(last))

    def last_measured(self, path: Path) -> Measured | None:
        """The latest real load of a file, or `None`."""
        try:
            data = json.loads(self._measured_file(path).read_text())
            return Measured(**{**data, "load": LoadParams(**data["load"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _ask(self, load: LoadParams) -> ModelNeed:
        need = _need(load, _dry_run(load))
        if need.source == "llama.cpp":
            self._save(self._estimate_file(load), asdict(need))
        return need

    def _read(self, load: LoadParams) -> ModelNeed | None:
        try:
            data = json.loads(self._estimate_file(load).read_text())
            vram = DeviceNeed(**data["vram"]) if data["vram"] else None
            return ModelNeed(DeviceNeed(**data["ram"]), vram, data["gpu"], data["source"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _estimate_file(self, load: LoadParams) -> Path:
        projector = _fingerprint(Path(load.mmproj)) if load.mmproj else None
        how = asdict(replace(load, path="", mmproj=None))  # whatever links lead to the files
        return self._folder / f"{_fingerprint(Path(load.path), how, projector, llama_cpp_version())}.json"

    def _measured_file(self, path: Path) -> Path:
        return self._folder / f"{_fingerprint(path)}.measured.json"

    def _save(self, path: Path, data: dict[str, Any]) -> None:
        with suppress(OSError):  # a cache that cannot be written costs time, not the run
            write_whole(path, json.dumps(data))


def _fingerprint(path: Path, *more: object) -> str:
    stat = path.stat()
    text = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def llama_cpp_version() -> str:
    """Which llama.cpp answers, without importing it: the package's version and any library put in its place."""
    return f"{_package_version()} {os.environ.get('LLAMA_CPP_LIB_PATH', '')}"


@lru_cache
def _package_version() -> str:
    return version("llama-cpp-python")


def _dry_run(load: LoadParams) -> dict[str, Any]:
    """Ask a throw-away child; one that dies, or hangs, answers with an error."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", "llm_core.dry_run"],
            input=json.dumps(asdict(load)),
            capture_output=True,
            text=True,
            timeout=DRY_RUN_LIMIT_S,
            env=child_environment(load.gpu),
        )
        answer: dict[str, Any] = json.loads(child.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        return {"error": str(error)}
    return answer


def _need(load: LoadParams, answer: dict[str, Any]) -> ModelNeed:
    gguf = read_gguf(Path(load.path))
    if "error" in answer:
        return formula(gguf, load)
    gpu_uses = [use for use in answer["buffers"] if _on_gpu(use["buffer"])]
    ram_uses = [use for use in answer["buffers"] if use not in gpu_uses]
    ram = _sum(ram_uses, answer["process_ram_bytes"])
    ram = replace(ram, compute_bytes=ram.compute_bytes + answer["output_bytes"])
    on_cpu, on_gpu = _projector(load, answer["projector"])
    ram = _plus(ram, on_cpu)
    if not gpu_uses:
        # The whole file is mapped, header and the originals of repacked tensors too.
        repacked = sum(use["weights_bytes"] for use in ram_uses if use["buffer"] != "CPU")
        return ModelNeed(replace(ram, weights_bytes=gguf.size_bytes + repacked + on_cpu.weights_bytes))
    process = answer["process_vram_bytes"] or CUDA_CONTEXT_BYTES
    return ModelNeed(ram, _plus(_sum(gpu_uses, process), on_gpu), load.gpu)


def _projector(load: LoadParams, by_device: dict[str, int]) -> tuple[DeviceNeed, DeviceNeed]:
    """(RAM, VRAM) of the model's eyes: as llama.cpp says, and an image as it is unpacked."""
    if load.mmproj is None:
        return DeviceNeed(), DeviceNeed()
    gguf = read_gguf(Path(load.mmproj))
    weights_bytes = gguf.tensor_bytes
    side = int(gguf.metadata.get("clip.vision.image_size") or 0)
    prepared = 3 * 4 * side**2 * load.sequences  # an image for each sequence, in numbers of 4 bytes
    vram_bytes = sum(size for name, size in by_device.items() if _on_gpu(name))
    ram_bytes = sum(by_device.values()) - vram_bytes
    on_gpu = min(weights_bytes, vram_bytes)
    on_cpu = min(weights_bytes - on_gpu, ram_bytes)
    return (
        DeviceNeed(weights_bytes=on_cpu, compute_bytes=ram_bytes - on_cpu + IMAGE_BYTES + prepared),
        DeviceNeed(weights_bytes=on_gpu, compute_bytes=vram_bytes - on_gpu),
    )


def _plus(left: DeviceNeed, right: DeviceNeed) -> DeviceNeed:
    return DeviceNeed(*(a + b for a, b in zip(astuple(left), astuple(right), strict=True)))


def _on_gpu(buffer: str) -> bool:
    """Host memory is `CPU…`, or pinned for a GPU (`…_Host`); all else lies on a device."""
    return not (buffer.startswith(("CPU", "AMX", "BLAS")) or buffer.endswith("_Host"))


def _sum(uses: list[dict[str, Any]], process_bytes: int) -> DeviceNeed:
    def total(name: str) -> int:
        return sum(use[name] for use in uses)

    return DeviceNeed(total("weights_bytes"), total("kv_bytes"), total("compute_bytes"), process_bytes)


def formula(gguf: GgufFile, load: LoadParams) -> ModelNeed:
    """The need reckoned from the header, for files that a dry run refuses; generous rather than exact.

    A projector: its file, a quarter of it again to compute in, and an image as it is unpacked.

    KV: per layer and token one key and one value vector for each KV head (llama.cpp, src/llama-kv-cache.cpp). Compute:
    the widest activations of a micro-batch of 512, f32, four at a time. On a GPU weights and KV go by layers.
    """
    n_layers = gguf.n_layers or 1
    heads = _largest(gguf.of_architecture("attention.head_count")) or 1
    kv_heads = _largest(gguf.of_architecture("attention.head_count_kv")) or heads
    embedding = gguf.of_architecture("embedding_length") or 0
    head_values = sum(
        gguf.of_architecture(f"attention.{side}_length") or embedding // heads for side in ("key", "value")
    )
    kv_bytes = int(n_layers * kv_heads * head_values * _KV_BYTES[load.kv_type] * load.context_cells)
    width = max(embedding, _largest(gguf.of_architecture("feed_forward_length")) or 0)
    compute_bytes = 4 * 512 * width * 4
    size = read_gguf(Path(load.mmproj)).size_bytes if load.mmproj else 0
    projector, unpacked = DeviceNeed(weights_bytes=size, compute_bytes=size // 4), IMAGE_BYTES if load.mmproj else 0
    if load.gpu is None or load.n_gpu_layers == 0:
        need = DeviceNeed(gguf.size_bytes, kv_bytes, compute_bytes + unpacked, FORMULA_PROCESS_BYTES)
        return ModelNeed(_plus(need, projector), source="formula")
    share = 1.0 if load.n_gpu_layers < 0 else min(1.0, load.n_gpu_layers / (n_layers + 1))
    ram = DeviceNeed(
        int(gguf.size_bytes * (1 - share)), int(kv_bytes * (1 - share)), compute_bytes + unpacked, FORMULA_PROCESS_BYTES
    )
    vram = DeviceNeed(int(gguf.tensor_bytes * share), int(kv_bytes * share), compute_bytes, CUDA_CONTEXT_BYTES)
    return ModelNeed(ram, _plus(vram, projector), load.gpu, source="formula")


def _largest(value: Any) -> int | None:
    """Some architectures give a number per layer."""
    number: int | None = max(value) if isinstance(value, list) else value
    return number
