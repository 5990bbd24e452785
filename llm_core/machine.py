"""What this machine has now: cores, RAM, GPUs. The only file that touches psutil and NVML."""

import contextlib
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

RAM = "RAM"
Bytes = Mapping[str, int]
"""Bytes by device: `RAM`, `GPU 0`, …"""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in bytes. `index` counts as CUDA does with CUDA_DEVICE_ORDER=PCI_BUS_ID."""

    index: int
    name: str
    vram_total: int
    vram_free: int


@dataclass(frozen=True)
class Machine:
    """Memory in bytes. RAM is what this process may still use: a cgroup limit counts where it is the tighter one."""

    cores: int
    ram_total: int
    ram_available: int
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What of the machine may be used. Percentages are of the device's whole memory, reserves are left free."""

    gpu_index: int | None = None
    max_vram_percent: float = 95.0
    vram_reserve_bytes: int = 512 * 2**20
    max_ram_percent: float = 90.0
    ram_reserve_bytes: int = 512 * 2**20


def read_machine() -> Machine:
    """Measure now. No NVIDIA driver means no GPUs, not an error."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit, used in _cgroup_memory():
        total, available = min(total, limit), min(available, max(0, limit - used))
    return Machine(physical_cores(), total, available, _gpus())


def budget(machine: Machine, limits: Limits) -> dict[str, int]:
    """What models may take of each device now: below the percentage of all, and the reserve left free."""
    ram = _allowed(machine.ram_total, machine.ram_available, limits.max_ram_percent, limits.ram_reserve_bytes)
    gpus = [gpu for gpu in machine.gpus if limits.gpu_index in (None, gpu.index)]
    vram = {
        device(gpu.index): _allowed(gpu.vram_total, gpu.vram_free, limits.max_vram_percent, limits.vram_reserve_bytes)
        for gpu in gpus
    }
    return {RAM: ram, **vram}


def _allowed(total: int, free: int, percent: float, reserve: int) -> int:
    return max(0, min(free - reserve, int(total * percent / 100) - (total - free)))


def device(gpu: int) -> str:
    return f"GPU {gpu}"


def sums(needs: Iterable[Bytes]) -> dict[str, int]:
    total: dict[str, int] = {}
    for need in needs:
        for name, size in need.items():
            total[name] = total.get(name, 0) + size
    return total


def fits(needs: Iterable[Bytes], within: Bytes) -> bool:
    return all(size <= within.get(name, 0) for name, size in sums(needs).items())


def gib(size: int) -> str:
    """`9.8 GiB`, or `214 MiB` under one GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def physical_cores() -> int:
    """Physical cores this process may use: hyper-threads counted once, CPU affinity respected, at least 1."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return max(1, min(cores, allowed_cpus()))


def allowed_cpus() -> int:
    """Logical CPUs this process may run on."""
    return len(_affinity())


def cpu_time_s() -> float:
    """What all processes have used of them since boot; niced ones are not counted, as they give way.

    0.0 where the system does not tell (Android, some containers).
    """
    allowed = _affinity()
    try:
        cpus = psutil.cpu_times(percpu=True)
    except OSError:
        return 0.0
    return sum(times.user + times.system for cpu, times in enumerate(cpus) if cpu in allowed)


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(psutil.cpu_count() or 1))


def peak_rss_bytes() -> int:
    """The most RAM this process has held so far (the kernel's VmHWM; elsewhere what it holds now).

    Not `ru_maxrss`: a child inherits its parent's peak through exec.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)


def process_vram_bytes(pid: int, gpu: int) -> int | None:
    """VRAM that one process holds on one GPU; `None` where NVML does not tell (no driver, or in a container)."""
    with _Nvml() as nvml:
        if nvml is None:
            return None
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(gpu))
        return next((p.usedGpuMemory for p in processes if p.pid == pid), None)
    return None


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since boot; `None` where it does not tell."""
    try:
        counters = Path("/proc/vmstat").read_text()
        return next(int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return None


class _Nvml:
    """NVML for the length of a `with`; `None` without a driver."""

    def __enter__(self):  # type: ignore[no-untyped-def]  # pynvml is untyped
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        return pynvml

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
        return isinstance(error, pynvml.NVMLError)


def _gpus() -> tuple[Gpu, ...]:
    found = []
    with _Nvml() as nvml:
        for index in range(nvml.nvmlDeviceGetCount() if nvml else 0):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            name = nvml.nvmlDeviceGetName(handle)
            found.append(Gpu(index, name if isinstance(name, str) else name.decode(), memory.total, memory.free))
    return tuple(found)


def _cgroup_memory() -> list[tuple[int, int]]:
    """(limit, used without reclaimable file pages) of this process's cgroup and its parents, v1 and v2."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    readings = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            readings += _walk(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes", "memory.usage_in_bytes")
        elif controllers == "":
            readings += _walk(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current")
    return readings


def _walk(root: Path, path: str, limit_file: str, usage_file: str) -> list[tuple[int, int]]:
    readings = []
    folder = root / path.lstrip("/")
    while folder == root or root in folder.parents:
        try:
            limit = int((folder / limit_file).read_text())
            used = int((folder / usage_file).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            readings.append((limit, used - reclaimable))
        except (OSError, ValueError):
            pass  # no limit here ("max"), or not a memory cgroup
        folder = folder.parent
    return readings


def cpu_name() -> str:
    """Such as `AMD EPYC 9654 96-Core Processor`; what the system calls its kind where it tells no name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
