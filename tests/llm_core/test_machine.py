"""What NVML says becomes a Machine; NVML itself is stood in for by a module of its shape."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from llm_core.machine import Gpu, process_vram_bytes, read_machine

GIB = 2**30


class FakeNVMLError(Exception):
    pass


def nvml(*, driver: bool = True, processes: bool = True) -> ModuleType:
    """Two GPUs; on the second, process 7 holds 3 GiB."""

    def init() -> None:
        if not driver:
            raise FakeNVMLError("Driver Not Loaded")

    def running(index: int) -> list[SimpleNamespace]:
        if not processes:
            raise FakeNVMLError("Not Supported")
        return [SimpleNamespace(pid=7, usedGpuMemory=3 * GIB)] if index == 1 else []

    module = ModuleType("pynvml")
    module.__dict__.update(
        NVMLError=FakeNVMLError,
        nvmlInit=init,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda index: [b"old bytes", "new text"][index],
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(total=24 * GIB, free=(20 + index) * GIB),
        nvmlDeviceGetComputeRunningProcesses=running,
    )
    return module


def test_gpus_are_read_in_nvmls_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert read_machine().gpus == (
        Gpu(0, "old bytes", 24 * GIB, 20 * GIB),
        Gpu(1, "new text", 24 * GIB, 21 * GIB),
    )


def test_no_driver_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(driver=False))
    assert read_machine().gpus == ()
    assert process_vram_bytes(7, 1) is None


@pytest.mark.parametrize(("pid", "gpu", "expected"), [(7, 1, 3 * GIB), (7, 0, None), (8, 1, None)])
def test_vram_of_one_process(monkeypatch: pytest.MonkeyPatch, pid: int, gpu: int, expected: int | None) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert process_vram_bytes(pid, gpu) == expected


def test_vram_of_a_process_is_unknown_where_nvml_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(processes=False))
    assert process_vram_bytes(7, 1) is None
