"""How every child process is started, so that a dry run and a real load see the same world."""

import os
from pathlib import Path

SPIN_COUNT = "1000"
"""How long llama.cpp's OpenMP threads spin at a barrier before they sleep, unless the user says otherwise.

With libgomp's default, threads that wait for one that has no core hold theirs for long. Seen on 2 cores with
SmolLM2-135M, one sample each: three models of 2 threads took 1.0 s with this and 2.4 s without; one model alone 1.38
and 1.37 s. Never to spin (OMP_WAIT_POLICY=passive) made one model alone 2.6 times slower (medians of 3).
"""
_PACKAGE_ROOT = str(Path(__file__).parent.parent)


def child_environment(gpu: int | None) -> dict[str, str]:
    """The environment of a child that may use one GPU, or none: then no CUDA context is made and no VRAM is taken."""
    path = os.pathsep.join(filter(None, [_PACKAGE_ROOT, os.environ.get("PYTHONPATH")]))
    return (
        {"GOMP_SPINCOUNT": SPIN_COUNT}
        | os.environ
        | {
            "PYTHONPATH": path,
            "PYTHONUNBUFFERED": "1",
            "GGML_NO_BACKTRACE": "1",  # an abort would first start a debugger to print its stack
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order
            "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu),
        }
    )
