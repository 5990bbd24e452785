"""The model host: the pool in one long-lived process, behind an OpenAI-compatible HTTP API on loopback.

`/v1/*` is for any OpenAI client, `/models/*` for people, `/pool/*` for runs of this project.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from llm_core.errors import GgufFlowError
from llm_core.host_messages import pack_error
from llm_core.host_models import HostModels
from llm_core.openai_api import openai_error, openai_router
from llm_core.pool import ModelPool
from llm_core.pool_api import pool_router

MOST_THREADS = 256
"""Answers under way at one time; each waits in a thread of its own."""


class Unauthorized(Exception):
    pass


def make_app(pool: ModelPool, models: HostModels, token: str) -> FastAPI:
    """The HTTP API over a pool. Every path but `/healthz` wants `Authorization: Bearer <token>`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = MOST_THREADS
        yield
        await asyncio.to_thread(pool.close)

    def authorized(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Unauthorized

    app = FastAPI(title="gguf-flow model host", lifespan=lifespan, openapi_url=None)
    guarded = [Depends(authorized)]
    app.include_router(openai_router(pool, models), dependencies=guarded)
    app.include_router(pool_router(pool), dependencies=guarded)

    @app.exception_handler(Unauthorized)
    async def unauthorized(request: Request, error: Exception) -> JSONResponse:
        return openai_error(401, "wrong or missing bearer token", "invalid_request_error", "invalid_api_key")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/models/status", dependencies=guarded)
    def status() -> dict[str, Any]:
        residents = [asdict(resident) for resident in pool.status()]
        free = pool.free_now()
        return {"load_count": pool.load_count, "budget": dict(pool.budget), "free": dict(free), "models": residents}

    @app.post("/models/load", dependencies=guarded)
    async def load(body: dict[str, Any]) -> JSONResponse:
        return await _answer(lambda: pool.load(models.load_params(body.get("model", "")), body["model"]))

    @app.post("/models/unload", dependencies=guarded)
    async def unload(body: dict[str, Any]) -> JSONResponse:
        name = body.get("model", "")
        loads = [r.load for r in await asyncio.to_thread(pool.status) if r.model == name]
        unloaded = [await asyncio.to_thread(pool.unload, one) for one in loads]
        return JSONResponse({"unloaded": sum(unloaded), "in_use": len(unloaded) - sum(unloaded)})

    return app


async def _answer(action: Callable[[], object]) -> JSONResponse:
    try:
        await asyncio.to_thread(action)
    except GgufFlowError as error:
        return JSONResponse(pack_error(error), status_code=409)
    return JSONResponse({"status": "ok"})
