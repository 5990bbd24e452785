"""Runs on one machine take turns, whichever threads they run in."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llm_core.machine_lock import machine_lock


def test_a_thread_that_took_the_lock_for_one_run_waits_for_it_for_the_next(tmp_path: Path) -> None:
    lines: list[str] = []
    someone_waits = threading.Event()

    def say(line: str) -> None:
        lines.append(line)
        someone_waits.set()

    with ThreadPoolExecutor(1) as pool:  # as asyncio.to_thread: the same thread serves both runs
        first, second = machine_lock(tmp_path, ["RAM"], say), machine_lock(tmp_path, ["RAM"], say)
        pool.submit(first.__enter__).result(timeout=10)
        entered = pool.submit(second.__enter__)
        assert someone_waits.wait(10)
        time.sleep(0.3)  # said before it waits; now it does
        first.__exit__(None, None, None)
        entered.result(timeout=10)
        second.__exit__(None, None, None)
    assert lines == [f"waiting for process {os.getpid()}, which is using this machine's RAM"]
