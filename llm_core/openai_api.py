"""OpenAI's chat API over a pool: `/v1/models` and `/v1/chat/completions`, with streaming, usage, seed and JSON schemas.

What it cannot do is refused, never ignored. Shapes: https://platform.openai.com/docs/api-reference/chat
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from llm_core.call_params import MAX_SEED, Constraint, SamplingParams
from llm_core.constraints import schema_constraint
from llm_core.documents import describe
from llm_core.errors import ConstraintError, GgufFlowError, InputError
from llm_core.generation import GenerateRequest
from llm_core.generation_events import generation_events
from llm_core.host_models import HostedModel, HostModels
from llm_core.images import Image
from llm_core.openai_images import ImagePart
from llm_core.pool import ModelPool
from llm_core.structured import parsed_answer


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> list[ImagePart]:
        return [part for part in self.content if isinstance(part, ImagePart)]


class StreamOptions(BaseModel):
    include_usage: bool = False


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Either way the schema is enforced."""

    @field_validator("json_schema")
    @classmethod
    def _can_be_enforced(cls, schema: dict[str, Any]) -> dict[str, Any]:
        schema_constraint(schema)
        return schema


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("'json_schema' goes with the type 'json_schema', and only with it")
        return self

    @property
    def constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        return schema_constraint(self.json_schema.json_schema if self.json_schema else {"type": "object"})


class ChatRequest(BaseModel):
    """The part of OpenAI's request that a local model can follow, and `top_k`, `min_p`, `repeat_penalty`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: str | list[str] | None = None
    response_format: ResponseFormat | None = None
    n: Literal[1] = 1
    user: str | None = None

    @model_validator(mode="after")
    def _images_in_the_last_message(self) -> Self:
        *before, last = self.messages
        if any(message.images for message in before) or (last.images and last.role != "user"):
            raise ValueError("images are taken in the last message only, the user's")
        return self

    @property
    def images(self) -> list[ImagePart]:
        return self.messages[-1].images

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The request's parameters over the model's own."""
        names = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")
        chosen: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if most := self.max_completion_tokens or self.max_tokens:
            chosen["max_tokens"] = most
        if self.stop:
            chosen["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return replace(defaults, **chosen)


def openai_router(pool: ModelPool, models: HostModels) -> APIRouter:
    """The `/v1` paths."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    def list_models() -> dict[str, Any]:
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "local"} for name in models.registry.available
        ]
        return {"object": "list", "data": data}

    @router.post("/chat/completions", response_model=None)
    async def chat(body: dict[str, Any]) -> JSONResponse | StreamingResponse:
        try:
            request = await asyncio.to_thread(ChatRequest.model_validate, body)  # a schema may take a while
            found = await asyncio.to_thread(models.find, request.model)
        except ValidationError as error:
            return openai_error(400, describe(error), "invalid_request_error", None)
        except GgufFlowError as error:
            return openai_error(404, str(error), "invalid_request_error", "model_not_found")
        try:
            images = await asyncio.to_thread(_images, request, found, models)
        except InputError as error:
            return openai_error(400, str(error), "invalid_request_error", "invalid_image")
        wanted = _wanted(request, found, models, images)
        events = generation_events(lambda on_token: pool.generate(found.load, found.name, wanted, on_token))
        if request.stream:
            return StreamingResponse(_chunks(request, events), media_type="text/event-stream")
        async for event in events:
            if "error" in event:
                return _error_of(event)
            if "result" in event:
                try:
                    parsed_answer(wanted.constraint, event["result"]["text"])
                except ConstraintError as error:
                    return openai_error(500, str(error), "server_error", None)
                return JSONResponse(_completion(request, event["result"]))
        raise AssertionError("a generation ends in a result or an error")

    return router


def _images(request: ChatRequest, found: HostedModel, models: HostModels) -> tuple[Image, ...]:
    if request.images and found.load.mmproj is None:
        raise InputError(f"model '{found.name}' cannot see images; give it an 'mmproj' in models.yaml")
    return tuple(part.load(models.image_sources) for part in request.images)


def _wanted(request: ChatRequest, found: HostedModel, models: HostModels, images: tuple[Image, ...]) -> GenerateRequest:
    messages = tuple(("system" if m.role == "developer" else m.role, m.text) for m in request.messages)
    sampling = request.sampling(found.call.sampling)
    constraint = request.response_format.constraint if request.response_format else None
    threads = models.cores
    return GenerateRequest(messages, sampling, found.call.strip_reasoning, threads, threads, constraint, images=images)


def _head(request: ChatRequest, kind: str) -> dict[str, Any]:
    id = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": id, "object": kind, "created": int(time.time()), "model": request.model}


def _completion(request: ChatRequest, result: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": result["text"]}
    if result["reasoning"] is not None:
        message["reasoning_content"] = result["reasoning"]
    choice = {"index": 0, "message": message, "finish_reason": result["finish_reason"], "logprobs": None}
    return {**_head(request, "chat.completion"), "choices": [choice], "usage": _usage(result)}


async def _chunks(request: ChatRequest, events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Server-sent events: a role, the text as it comes, a finish reason, usage if wanted, `[DONE]`."""
    head = _head(request, "chat.completion.chunk")

    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        return _sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    yield chunk({"role": "assistant", "content": ""})
    async for event in events:
        if "error" in event:
            yield _sse({"error": _error_body(*_kind_of(event), event["error"])})
        elif "result" in event:
            yield chunk({}, event["result"]["finish_reason"])
            if request.stream_options and request.stream_options.include_usage:
                yield _sse({**head, "choices": [], "usage": _usage(event["result"])})
        elif event["text"]:
            yield chunk({"content": event["text"]})
    yield "data: [DONE]\n\n"


def _usage(result: dict[str, Any]) -> dict[str, Any]:
    n_prompt, n_completion = result["prompt_tokens"], result["completion_tokens"]
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": result["cached_prompt_tokens"]},
    }


def _sse(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


_STATUS = {
    "InputError": (400, "invalid_request_error", "invalid_image"),
    "ContextOverflow": (400, "invalid_request_error", "context_length_exceeded"),
    "InsufficientMemory": (503, "server_error", "insufficient_memory"),
    "GenerationTimeout": (504, "server_error", "timeout"),
}


def _kind_of(event: dict[str, Any]) -> tuple[str, str | None]:
    return _STATUS.get(event["kind"], (500, "server_error", None))[1:]


def _error_of(event: dict[str, Any]) -> JSONResponse:
    status, kind, code = _STATUS.get(event["kind"], (500, "server_error", None))
    return openai_error(status, event["error"], kind, code)


def openai_error(status: int, message: str, kind: str, code: str | None) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    return JSONResponse({"error": _error_body(kind, code, message)}, status_code=status)


def _error_body(kind: str, code: str | None, message: str) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": code}
