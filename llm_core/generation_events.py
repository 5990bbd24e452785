"""A blocking generation as a stream of events for an event loop; who stops listening ends the generation."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

from llm_core.errors import GgufFlowError, ModelCrashed
from llm_core.generation import GenerateResult
from llm_core.host_messages import pack_error
from llm_core.worker import OnToken

Ask = Callable[[OnToken], GenerateResult]


async def generation_events(ask: Ask, running: set[Callable[[], None]] | None = None) -> AsyncIterator[dict[str, Any]]:
    """`{"text", "n"}` per token, then one `{"result"}` or `{"error", "kind"}`.

    Args:
        running: while it lasts, holds what ends this generation at once, from any thread.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    gone = threading.Event()

    def put(event: dict[str, Any]) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    def on_token(text: str, n_tokens: int) -> None:
        if gone.is_set():
            raise ConnectionAbortedError("the client has gone")
        put({"text": text, "n": n_tokens})

    def work() -> None:
        try:
            put({"result": asdict(ask(on_token))})
        except ConnectionAbortedError:
            pass
        except GgufFlowError as error:
            put(pack_error(error))
        except Exception as error:
            put(pack_error(ModelCrashed(f"the model host failed: {type(error).__name__}: {error}")))

    def end() -> None:
        gone.set()
        put(pack_error(GgufFlowError("the run has ended")))

    running = set() if running is None else running
    running.add(end)
    threading.Thread(target=work, name="generation", daemon=True).start()
    try:
        while True:
            event = await events.get()
            yield event
            if "result" in event or "error" in event:
                return
    finally:
        running.discard(end)
        gone.set()
