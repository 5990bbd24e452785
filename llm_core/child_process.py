"""How every child process is started, so that a dry run and a real load see the same world."""

import os
from pathlib import Path

SPIN_COUNT = "1000"
"""How long llama.cpp's OpenMP threads spin at a barrier before they sleep, unless the user says otherwise.

A thread that waits for one that has no core must not hold its own. `IdleCores` makes that rare, but cannot where an
answer must keep its threads, nor before it has measured. Seen on 2 cores with SmolLM2-135M as Q4_0, two threads beside
one busy process: 34 tokens/s with this, and 14 with 10,000 (one sample each); three models of 2 threads 1.8 s with
this, 10 s with 10,000 and 83 s with 100,000 (medians of 2). On a machine that does nothing else 10,000 was 1.05
times as fast in one series (medians of 12; as Q4_1 0.98 to 1.0, as Q8_0 1.06) and 0.97 times in another (of 6).
Never to spin (OMP_WAIT_POLICY=passive) made one model alone 2.6 times slower (medians of 3).
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
