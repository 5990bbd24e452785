"""What this machine has now; the only file that touches psutil."""

import os

import psutil


def physical_cores() -> int:
    """Physical cores this process may use: hyper-threads counted once, CPU affinity respected, at least 1."""
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return max(1, min(cores, allowed))
