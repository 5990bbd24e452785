"""`/pool/*` of the model host: what `HostPool` asks for in the place of a pool of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from llm_core.call_params import LoadParams
from llm_core.generation_events import generation_events
from llm_core.host_messages import unpack_call
from llm_core.pool import ModelPool


def pool_router(pool: ModelPool) -> APIRouter:
    """Prefetch, hold, generate, and the end of all that one run has under way."""
    router = APIRouter()
    running: dict[str, set[Callable[[], None]]] = {}

    @router.post("/pool/prefetch")
    def prefetch(body: dict[str, Any]) -> dict[str, str]:
        pool.prefetch(LoadParams(**body["load"]), body["model"])
        return {"status": "ok"}

    @router.post("/pool/hold")
    async def hold(body: dict[str, Any]) -> StreamingResponse:
        return StreamingResponse(_held(pool, LoadParams(**body["load"])), media_type="application/x-ndjson")

    @router.post("/pool/end")
    async def end(body: dict[str, Any]) -> dict[str, str]:
        for end_generation in tuple(running.pop(body["run"], ())):
            end_generation()
        return {"status": "ok"}

    @router.post("/pool/generate")
    async def generate(body: dict[str, Any]) -> StreamingResponse:
        wanted, model, request = unpack_call(body)
        of_run = running.setdefault(body.get("run", ""), set())
        events = generation_events(lambda on_token: pool.generate(wanted, model, request, on_token), of_run)
        lines = (json.dumps(event) + "\n" async for event in events)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    return router


async def _held(pool: ModelPool, load: LoadParams) -> AsyncIterator[str]:
    """Keeps `load` for as long as the client keeps the connection."""
    with pool.hold(load):
        yield "held\n"
        while True:
            await asyncio.sleep(5)
            yield "held\n"  # finds out that the client has gone
