"""Anthropic's models, by its SDK. Shapes: https://docs.anthropic.com/en/api/messages"""

from base64 import b64encode
from contextlib import closing
from typing import Any

import anthropic

from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.images import Image
from llm_core.providers.faults import Faults, required_key
from llm_core.providers.protocol import FindKey, ProviderCapabilities
from llm_core.providers.settings import AnthropicSettings
from llm_core.providers.streamed_answer import CONNECT_TIMEOUT_S, SILENCE_S, StreamedAnswer, schema_of
from llm_core.worker import OnToken

_ENDED = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}


class AnthropicMessages:
    """One model; answers are streamed.

    Raises:
        ConfigError: the key is missing.
    """

    def __init__(self, settings: AnthropicSettings, capabilities: ProviderCapabilities, find_key: FindKey) -> None:
        self.capabilities, self._settings = capabilities, settings
        key = required_key(settings.api_key_env, settings.type, find_key)
        self._faults = Faults(f"anthropic ({settings.model})", key)
        self._client = anthropic.Anthropic(base_url=settings.base_url, api_key=key, max_retries=0)

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """One answer.

        Raises:
            ProviderUnavailable: busy, broken down, not reached, or cut off in mid-answer.
            GgufFlowError: refused, too long for its context, or not what its schema says.
        """
        answer = StreamedAnswer(request, on_token)
        ended = False
        with self._faults.of_sdk(anthropic, _message):
            timeout = anthropic.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
            stream = self._client.messages.create(**self._body(request), stream=True, timeout=timeout)
            with closing(stream):
                for event in stream:
                    self._take(answer, event)
                    ended = ended or event.type == "message_stop"
        if not ended or answer.finish_reason is None:
            raise self._faults.passing("the answer broke off in the middle")
        return answer.result()

    def close(self) -> None:
        """Ends what is under way."""
        self._client.close()

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        system = "\n\n".join(content for role, content in request.messages if role == "system")
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": _messages(request),
            "max_tokens": request.sampling.max_tokens,
            "extra_body": self._settings.extra or None,
        }
        if system:
            body["system"] = system
        if "stop" in request.chosen and request.sampling.stop:
            body["stop_sequences"] = list(request.sampling.stop)
        if schema := schema_of(request):
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return body

    def _take(self, answer: StreamedAnswer, event: Any) -> None:
        if event.type == "message_start":
            usage = event.message.usage
            answer.answered_by = event.message.model
            answer.cached_prompt_tokens = usage.cache_read_input_tokens
            written = usage.cache_creation_input_tokens or 0
            answer.prompt_tokens = usage.input_tokens + written + (usage.cache_read_input_tokens or 0)
        elif event.type == "content_block_delta" and event.delta.type == "text_delta":
            answer.text(event.delta.text)
        elif event.type == "content_block_delta" and event.delta.type == "thinking_delta":
            answer.thought(event.delta.thinking)
        elif event.type == "message_delta":
            answer.completion_tokens = event.usage.output_tokens
            reason = event.delta.stop_reason
            if reason not in _ENDED:
                raise self._faults.refused(f"the answer ended with stop_reason '{reason}'")
            answer.finish_reason = _ENDED[reason]


def _messages(request: GenerateRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [
        {"role": role, "content": text} for role, text in request.messages if role != "system"
    ]
    if request.images:
        seen = [{"type": "image", "source": {"type": "base64", **_source(image)}} for image in request.images]
        messages[-1]["content"] = [*seen, {"type": "text", "text": messages[-1]["content"]}]
    return messages


def _source(image: Image) -> dict[str, str]:
    return {"media_type": image.media_type, "data": b64encode(image.data).decode("ascii")}


def _message(error: anthropic.APIStatusError) -> str:
    body = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    return str(inner.get("message") or "") if isinstance(inner, dict) else ""
