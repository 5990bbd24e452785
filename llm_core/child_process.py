"""How every child process is started, so that a dry run and a real load see the same world."""

import os
from pathlib import Path

_PACKAGE_ROOT = str(Path(__file__).parent.parent)


def child_environment(gpu: int | None) -> dict[str, str]:
    """The environment of a child that may use one GPU, or none: then no CUDA context is made and no VRAM is taken."""
    path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "GGML_NO_BACKTRACE": "1",  # an abort would first start a debugger to print its stack
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu),
    }
