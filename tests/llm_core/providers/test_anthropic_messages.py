"""Anthropic's wire format: a server on loopback reads requests, and writes events, by the SDK's own types."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from anthropic.types import (
    Message,
    MessageDeltaUsage,
    RawContentBlockDeltaEvent,
    RawContentBlockStartEvent,
    RawContentBlockStopEvent,
    RawMessageDeltaEvent,
    RawMessageStartEvent,
    RawMessageStopEvent,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    Usage,
)
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from anthropic.types.raw_message_delta_event import Delta
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, with_config
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from llm_core.constraints import schema_constraint
from llm_core.errors import ConfigError, ContextOverflow, ProviderError, ProviderUnavailable, RequestRefused
from llm_core.images import make_image
from tests.llm_core.providers.chat_server import KEY, PNG, PNG_BASE64, provider, request

MODEL = "claude-tiny"


@with_config(ConfigDict(extra="forbid"))
class Body(MessageCreateParamsStreaming):
    """The SDK's type, and nothing beside it."""


Params: TypeAdapter[Any] = TypeAdapter(Body)


def events(text: str, stop_reason: Any = "end_turn", thought: str = "") -> list[BaseModel]:
    usage = Usage(input_tokens=10, output_tokens=1, cache_read_input_tokens=4, cache_creation_input_tokens=2)
    message = Message(
        id="m", type="message", role="assistant", model="claude-tiny-2026", content=[], stop_reason=None, usage=usage
    )
    found: list[BaseModel] = [RawMessageStartEvent(type="message_start", message=message)]
    if thought:
        found += [
            RawContentBlockStartEvent(
                type="content_block_start",
                index=0,
                content_block=ThinkingBlock(type="thinking", thinking="", signature=""),
            ),
            RawContentBlockDeltaEvent(
                type="content_block_delta", index=0, delta=ThinkingDelta(type="thinking_delta", thinking=thought)
            ),
            RawContentBlockStopEvent(type="content_block_stop", index=0),
        ]
    block = TextBlock(type="text", text="")
    found.append(RawContentBlockStartEvent(type="content_block_start", index=1, content_block=block))
    found += [
        RawContentBlockDeltaEvent(
            type="content_block_delta", index=1, delta=TextDelta(type="text_delta", text=text[at : at + 4])
        )
        for at in range(0, len(text), 4)
    ]
    found.append(RawContentBlockStopEvent(type="content_block_stop", index=1))
    ended = Delta(stop_reason=stop_reason)
    found.append(RawMessageDeltaEvent(type="message_delta", delta=ended, usage=MessageDeltaUsage(output_tokens=9)))
    return [*found, RawMessageStopEvent(type="message_stop")]


def answering(made: list[BaseModel]) -> Callable[[Request], Response]:
    """A handler as Anthropic's: it looks at version, key and body, and streams the events."""

    def handle(asked: Request) -> Response:
        key = asked.headers.get("X-Api-Key") or asked.headers.get("Authorization", "").removeprefix("Bearer ")
        if key != KEY or not asked.headers.get("Anthropic-Version"):
            return refusal(401, "authentication_error", "invalid x-api-key")
        try:
            Params.validate_json(asked.get_data(), strict=True)
        except ValidationError as error:
            return refusal(400, "invalid_request_error", str(error))
        lines = (f"event: {event.type}\ndata: {event.model_dump_json()}\n\n" for event in made)  # type: ignore[attr-defined]
        return Response("".join(lines), content_type="text/event-stream")

    return handle


def refusal(status: int, kind: str, message: str, **headers: str) -> Response:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return Response(json.dumps(body), status, headers, content_type="application/json")


def claude(server: HTTPServer, **more: Any) -> Any:
    return provider({"type": "anthropic", "base_url": server.url_for(""), **more}, name=MODEL)


def sent(server: HTTPServer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(server.log[-1][0].get_data())
    return body


def test_request_is_one_that_the_types_allow_and_the_answer_is_read(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/messages").respond_with_handler(answering(events("Frozen water.", thought="Cold…")))
    pieces: list[str] = []
    result = claude(httpserver).generate(request(("stop",), stop=("\n",)), lambda text, n: pieces.append(text))
    assert (result.text, result.reasoning, result.finish_reason) == ("Frozen water.", "Cold…", "stop")
    assert pieces == ["", "Froz", "en w", "ater", "."]
    # Anthropic counts what is read from and written to its cache beside the input tokens.
    assert (result.prompt_tokens, result.cached_prompt_tokens, result.completion_tokens) == (16, 4, 9)
    assert result.answered_by == "claude-tiny-2026"
    assert sent(httpserver) == {
        "model": MODEL,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "What is ice?"}],
        "max_tokens": 50,
        "stop_sequences": ["\n"],
        "stream": True,
    }


def test_images_stand_before_the_text(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/messages").respond_with_handler(answering(events("Ice.")))
    claude(httpserver).generate(replace(request(), images=(make_image(PNG, "ice.png"),)))
    assert sent(httpserver)["messages"][0]["content"] == [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG_BASE64}},
        {"type": "text", "text": "What is ice?"},
    ]


def test_server_refuses_what_the_types_do_not_allow(httpserver: HTTPServer) -> None:
    """The check of the test's own server can fail."""
    httpserver.expect_request("/v1/messages").respond_with_handler(answering(events("x")))
    with pytest.raises(RequestRefused, match=r"400 Bad Request: .*logit_bias"):
        claude(httpserver, extra={"logit_bias": {}}).generate(request())


def test_schema_is_passed_on(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/messages").respond_with_handler(answering(events('{"cold": true}')))
    schema = {"type": "object", "properties": {"cold": {"type": "boolean"}}, "required": ["cold"]}
    result = claude(httpserver).generate(replace(request(), constraint=schema_constraint(schema)))
    assert result.text == '{"cold": true}'
    assert sent(httpserver)["output_config"] == {"format": {"type": "json_schema", "schema": schema}}


def test_answer_that_reached_max_tokens_says_so(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/messages").respond_with_handler(answering(events("Frozen", "max_tokens")))
    assert claude(httpserver).generate(request()).finish_reason == "length"


def test_refusal_of_the_model_is_none_of_the_run(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/messages").respond_with_handler(answering(events("", "refusal")))
    with pytest.raises(RequestRefused, match="stop_reason 'refusal'"):
        claude(httpserver).generate(request())


def test_overloaded_server_may_do_better(httpserver: HTTPServer) -> None:
    overloaded = refusal(529, "overloaded_error", "Overloaded", **{"Retry-After": "2"})
    httpserver.expect_request("/v1/messages").respond_with_response(overloaded)
    with pytest.raises(ProviderUnavailable, match=r"^anthropic \(claude-tiny\): 529: Overloaded$") as caught:
        claude(httpserver).generate(request())
    assert caught.value.retry_after_s == 2.0
    assert len(httpserver.log) == 1


def test_wrong_key_is_not_retried_and_not_repeated(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/v1/messages").respond_with_response(refusal(401, "authentication_error", f"bad {KEY}"))
    with pytest.raises(ProviderError, match="401 Unauthorized: bad …") as caught:
        claude(httpserver).generate(request())
    assert not isinstance(caught.value, ProviderUnavailable)


def test_missing_key_is_said_at_once(httpserver: HTTPServer) -> None:
    with pytest.raises(ConfigError, match="set ANTHROPIC_API_KEY, or make a Secret block 'anthropic-api-key'"):
        provider({"type": "anthropic"}, lambda name: None)


def test_question_that_is_too_long_is_called_so(httpserver: HTTPServer) -> None:
    too_long = refusal(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
    httpserver.expect_request("/v1/messages").respond_with_response(too_long)
    with pytest.raises(ContextOverflow, match="prompt is too long"):
        claude(httpserver).generate(request())


def test_stream_that_breaks_off_or_reports_an_error_may_do_better(httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request("/v1/messages").respond_with_handler(answering(events("Frozen")[:-2]))
    error = 'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'
    httpserver.expect_ordered_request("/v1/messages").respond_with_data(error, content_type="text/event-stream")
    with pytest.raises(ProviderUnavailable, match="broke off in the middle"):
        claude(httpserver).generate(request())
    with pytest.raises(ProviderUnavailable, match="Overloaded"):
        claude(httpserver).generate(request())
