"""The child process of a loaded model: JSON lines in on stdin, JSON lines out on what was stdout.

In:  {"load": …} first, then {"generate": id, "request": …}, {"cancel": id}, {"threads": n}; 0 pauses.
Out: a line is a list of messages, those of one decode step or a few: {"loaded": load_s}, {"started": id},
     {"token": id, "text": …, "n": …}, {"finished": id, "result": …}, {"paused": true},
     {"failed": id or null, "kind": class of llm_core.errors, "message": …}.
"""

import dataclasses
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, TextIO

from llm_core.call_params import LoadParams
from llm_core.errors import GgufFlowError
from llm_core.generation import unpack_request

GROUP_S = 0.05
"""Tokens that come within it are sent together, except the first of an answer: 20 times a second is fluent to read."""


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints must not break the protocol
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    load = LoadParams(**json.loads(sys.stdin.readline())["load"])
    threading.Thread(target=_read, args=(inbox,), daemon=True).start()

    from llm_core.engine import Engine

    try:
        engine = Engine(load)
    except GgufFlowError as error:
        _send(out, {"failed": None, "kind": type(error).__name__, "message": str(error)})
        return
    _send(out, {"loaded": engine.load_s})
    outbox = Outbox(out)
    while True:
        while not engine.busy or engine.threads == 0 or not inbox.empty():
            _receive(engine, inbox.get(), out)
        outbox.add(map(_message, engine.step()))


class Outbox:
    """Sends tokens in small groups: whoever reads them takes time from the cores that decode."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._waiting: list[dict[str, Any]] = []
        self._sent = 0.0

    def add(self, messages: Iterable[dict[str, Any]]) -> None:
        """Send `messages` now if someone waits for one of them or the last were sent a while ago, else soon."""
        self._waiting += messages
        now = time.monotonic()
        if now - self._sent > GROUP_S or any(message.get("n", 1) == 1 for message in self._waiting):
            if self._waiting:
                _send(self._out, *self._waiting)
            self._waiting.clear()
            self._sent = now


def _read(inbox: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Ends the process at once when the parent closes the pipe or dies, even in mid-decode."""
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(0)


def _receive(engine: Any, message: dict[str, Any], out: TextIO) -> None:
    if "cancel" in message:
        engine.cancel(message["cancel"])
        return
    if "threads" in message:
        engine.threads = message["threads"]
        if engine.threads == 0:
            _send(out, {"paused": True})
        return
    engine.submit(message["generate"], unpack_request(message["request"]))


def _message(event: Any) -> dict[str, Any]:
    from llm_core.engine_answer import Failed, Finished, Started

    if isinstance(event, Started):
        return {"started": event.id}
    if isinstance(event, Finished):
        return {"finished": event.id, "result": dataclasses.asdict(event.result)}
    if isinstance(event, Failed):
        return {"failed": event.id, "kind": type(event.error).__name__, "message": str(event.error)}
    return {"token": event.id, "text": event.text, "n": event.completion_tokens}


def _send(out: TextIO, *messages: dict[str, Any]) -> None:
    out.write(json.dumps(messages) + "\n")


if __name__ == "__main__":
    main()
