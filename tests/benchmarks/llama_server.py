"""llama-server as a child of a benchmark, asked over HTTP."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

STARTUP_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_health(url: str, process: subprocess.Popen[bytes], name: str) -> None:
    """Until `url` answers; ends the benchmark with one line where it never does."""
    until = time.monotonic() + STARTUP_S
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url, timeout=2, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.2)
    raise SystemExit(f"{name} does not answer at {url} (exit code {process.poll()})")


@contextmanager
def serve(binary: str, path: Path, slots: int, n_ctx: int, threads: int) -> Iterator[str]:
    """The address of a server with `slots` slots of `n_ctx` tokens each, on the CPU, its prompt cache on by default."""
    port = free_port()
    context = ["-np", str(slots), "-c", str(slots * n_ctx), "-t", str(threads), "-tb", str(threads), "-ngl", "0"]
    command = [binary, "-m", str(path), *context, "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_health(f"http://127.0.0.1:{port}/health", process, "llama-server")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def asker(url: str, max_tokens: int) -> Iterator[Callable[[list[str]], list[tuple[int, int]]]]:
    """Posts all prompts at once, at temperature 0; (prompt, completion) tokens of each."""
    with httpx.Client(base_url=url, timeout=None, trust_env=False) as client:

        def ask(prompt: str) -> tuple[int, int]:
            chat = {"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": max_tokens}
            usage = client.post("/v1/chat/completions", json=chat).raise_for_status().json()["usage"]
            return usage["prompt_tokens"], usage["completion_tokens"]

        def ask_all(prompts: list[str]) -> list[tuple[int, int]]:
            with ThreadPoolExecutor(len(prompts)) as threads:
                return list(threads.map(ask, prompts))

        yield ask_all
