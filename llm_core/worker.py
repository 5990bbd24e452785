"""One child process per loaded model, seen from the parent: load, generate, unload, and every way it can die."""

import contextlib
import dataclasses
import itertools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from llm_core import errors
from llm_core.call_params import LoadParams
from llm_core.child_process import child_environment
from llm_core.errors import GenerationTimeout, ModelCrashed, ModelOutOfMemory
from llm_core.generation import GenerateRequest, GenerateResult, pack_request, unpack_result
from llm_core.machine import oom_kills
from llm_core.out_of_memory import is_out_of_memory

OnToken = Callable[[str, int], None]
"""Called with new text and the number of tokens so far."""

TIMEOUT_GRACE_S = 2.0
"""How long past `timeout_s` a child may take to end a generation itself before it is killed."""


class ModelWorker:
    """A model loaded in a process of its own; `generate` may be called from several threads.

    Args:
        load: what to load and how.
        model: its name, for messages.

    Raises:
        ModelLoadError: llama.cpp refused the file or the context.
        ModelCrashed: the process ended while loading.
    """

    def __init__(self, load: LoadParams, model: str) -> None:
        self.load, self.model = load, model
        self._oom_kills = oom_kills()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llm_core.worker_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is the parent's to handle
            env=child_environment(load.gpu),
        )
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._inboxes: dict[int | None, queue.SimpleQueue[dict[str, Any] | None]] = {None: queue.SimpleQueue()}
        self._ended = False
        self._paused = threading.Event()
        threading.Thread(target=self._read, name=f"worker-{model}", daemon=True).start()
        try:
            self._send(load=dataclasses.asdict(load))
            loaded = self._next(None, "loading")
        except BaseException:
            self.kill()
            raise
        self.load_s: float = loaded["loaded"]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """Answer one chat, blocking, with as many threads as `use_threads` said last (1).

        `timeout_s` begins when the answer gets its sequence; `load_s` of the result is the load time of this worker.

        Raises:
            ContextOverflow: the prompt does not fit.
            ConstraintError: the answer could not be held to its constraint.
            GenerationTimeout: `timeout_s` is over; generation has ended.
            ModelCrashed: the process died.
        """
        id = next(self._ids)
        with self._lock:
            self._inboxes[id] = queue.SimpleQueue()
        try:
            self._send(generate=id, request=pack_request(request))
            timeout_s = request.sampling.timeout_s
            limit_s = None  # while it waits for its turn
            while True:
                message = self._next(id, "generating", limit_s)
                if "finished" in message:
                    return unpack_result(message["result"])
                if "started" in message:
                    limit_s = None if timeout_s is None else timeout_s + TIMEOUT_GRACE_S
                elif on_token:
                    on_token(message["text"], message["n"])
        except queue.Empty:
            self.kill()
            raise GenerationTimeout(
                f"model '{self.model}': no token within timeout_s {timeout_s}; it was ended"
            ) from None
        except BaseException:
            self._try_cancel(id)
            raise
        finally:
            with self._lock:
                self._inboxes.pop(id, None)

    def use_threads(self, threads: int) -> None:
        """Decode with another number of threads from the next step on."""
        with contextlib.suppress(ModelCrashed, ModelOutOfMemory):  # its generation tells of that
            self._send(threads=threads)

    def pause(self) -> None:
        """Stop decoding before the next step, until `use_threads`; returns when it has stopped, or has ended."""
        self._paused.clear()
        self.use_threads(0)
        while self.alive and not self._paused.wait(timeout=0.1):
            pass

    def close(self) -> None:
        """Unload: the process ends and its memory is free when this returns."""
        try:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait(timeout=2)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _next(self, id: int | None, doing: str, limit_s: float | None = None) -> dict[str, Any]:
        message = self._inboxes[id].get(timeout=limit_s)
        if message is None:
            raise self._crash(doing)
        if "failed" in message:
            error_class = getattr(errors, message["kind"])
            raise error_class(f"model '{self.model}': {message['message']}")
        return message

    def _send(self, **message: Any) -> None:
        try:
            with self._lock:
                assert self._process.stdin
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._crash("receiving a request") from None

    def _try_cancel(self, id: int) -> None:
        with contextlib.suppress(ModelCrashed, ModelOutOfMemory):
            self._send(cancel=id)

    def _read(self) -> None:
        """Sort the child's lines into inboxes; when it ends, tell everyone who waits."""
        assert self._process.stdout
        for line in self._process.stdout:
            try:
                messages = json.loads(line)
            except ValueError:  # killed in the middle of a line
                break
            for message in messages:
                self._sort(message)
        self._process.wait()
        with self._lock:
            self._ended = True
            for inbox in self._inboxes.values():
                inbox.put(None)

    def _sort(self, message: dict[str, Any]) -> None:
        if "paused" in message:
            self._paused.set()
            return
        id = next((message[key] for key in ("started", "token", "finished", "failed") if key in message), None)
        with self._lock:
            inbox = self._inboxes.get(id)
        if inbox:
            inbox.put(message)

    def _crash(self, doing: str) -> ModelCrashed | ModelOutOfMemory:
        code = self._process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
        said = self._last_words()
        killed_for_memory = code == -signal.SIGKILL and oom_kills() != self._oom_kills
        error_class = ModelOutOfMemory if killed_for_memory or is_out_of_memory(said) else ModelCrashed
        return error_class(
            f"model '{self.model}' ({Path(self.load.path).name}): its process ended by {how} while {doing}"
            + ("; the system had run out of memory" if killed_for_memory else "")
            + (f"; it said: {said}" if said else "")
        )

    def _last_words(self) -> str:
        """The line of a failed assertion, or the last line on the child's stderr."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - 8192))
        lines = [line.strip() for line in self._stderr.read().decode("utf-8", "replace").splitlines() if line.strip()]
        asserts = [line for line in lines if "GGML_ASSERT" in line or is_out_of_memory(line)]
        return (asserts or lines or [""])[-1][:300]
