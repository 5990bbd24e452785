"""One run at a time per device: two runs that share cores or a GPU take turns instead of fighting."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

# Not -1: filelock refuses to wait without end where the waiting thread once took the same lock, which threads of a
# thread pool do: one run's thread serves the next run while the first still holds the lock.
AS_LONG_AS_IT_TAKES_S = 10.0 * 365 * 24 * 3600


@contextmanager
def machine_lock(folder: Path, devices: Iterable[str], on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file of every device; the system frees it when a process dies.

    Args:
        folder: where the lock files of this machine's user lie.
        devices: such as `RAM`, `GPU 0`; taken in sorted order, so that two runs never wait for each other.
        on_wait: told once, with a line for people, when another run has to be waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for device in sorted(devices):
            path = folder / f"{device.replace(' ', '').lower()}.lock"
            lock = FileLock(path, thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                on_wait(f"waiting for {_holder(path)}, which is using this machine's {device}")
                lock.acquire(timeout=AS_LONG_AS_IT_TAKES_S)
            held.callback(lock.release)
            path.with_suffix(".holder").write_text(str(os.getpid()))
        yield


def _holder(path: Path) -> str:
    try:
        return f"process {path.with_suffix('.holder').read_text()}"
    except OSError:
        return "another run"
