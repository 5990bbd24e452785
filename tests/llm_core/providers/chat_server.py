"""What a chat server streams, by hand, and requests to ask it with."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from werkzeug import Response

from llm_core.call_params import SamplingParams
from llm_core.generation import GenerateRequest
from llm_core.providers.protocol import FindKey, Provider
from llm_core.providers.registry import open_provider, remote_model
from llm_core.providers.remote import RemoteModels

KEY = "sk-planted-0123456789"
KEYS = {"OPENAI_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY, "MY_KEY": KEY}


def provider(written: Mapping[str, Any], find_key: FindKey = KEYS.get, name: str = "tiny") -> Provider:
    return open_provider(remote_model(name, written), find_key)


def in_a_run(written: Mapping[str, Any]) -> Provider:
    """The same as runs have it: limited in number and time."""
    remote = remote_model("tiny", written)
    return RemoteModels([("tiny", remote)], KEYS.get).of(remote)


def request(chosen: tuple[str, ...] = (), **sampling: Any) -> GenerateRequest:
    messages = (("system", "Be brief."), ("user", "What is ice?"))
    return GenerateRequest(messages, replace(SamplingParams(max_tokens=50), **sampling), chosen=chosen)


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {"content": text} if text is not None else {}
    choices = [{"index": 0, "delta": delta | more.pop("delta", {}), "finish_reason": finish, **more}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "tiny-2026", "choices": choices}


USAGE = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 0,
    "model": "tiny-2026",
    "choices": [],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
    },
}


def sse(*events: Any, done: bool = True) -> str:
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join(lines) + ("data: [DONE]\n\n" if done else "")


def streamed(body: str) -> Response:
    return Response(body, content_type="text/event-stream")


PNG = bytes.fromhex("89504e470d0a1a0a") + b"the rest"
"""What is looked at of a PNG is how it begins."""
PNG_BASE64 = "iVBORw0KGgp0aGUgcmVzdA=="
"""By `base64` of coreutils."""

ANSWER = sse(chunk("Frozen"), chunk(" water"), chunk(".", "stop"), USAGE)
