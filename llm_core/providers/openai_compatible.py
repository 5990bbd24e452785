"""Models behind OpenAI's chat API, OpenAI's own or another server's, by the `openai` SDK.

Shapes: https://platform.openai.com/docs/api-reference/chat
"""

import json
from contextlib import closing
from typing import Any

import openai

from llm_core.errors import ConfigError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.images import data_url
from llm_core.providers.faults import Faults, required_key
from llm_core.providers.protocol import FindKey, ProviderCapabilities
from llm_core.providers.settings import OpenAISettings
from llm_core.providers.streamed_answer import CONNECT_TIMEOUT_S, SILENCE_S, StreamedAnswer, schema_of
from llm_core.worker import OnToken

BASE_URL = "OPENAI_COMPATIBLE_BASE_URL"
_ENDED = {"stop": "stop", "length": "length", "eos": "stop", "end_turn": "stop", "max_tokens": "length"}


class OpenAICompatible:
    """One model of one server; answers are streamed.

    Raises:
        ConfigError: the key, or the server's address, is missing.
    """

    def __init__(self, settings: OpenAISettings, capabilities: ProviderCapabilities, find_key: FindKey) -> None:
        self.capabilities, self._settings = capabilities, settings
        base_url = settings.base_url or settings.preset.base_url or find_key(BASE_URL)
        if base_url is None:
            raise ConfigError(f"provider '{settings.type}' needs 'base_url' in models.yaml, or {BASE_URL}")
        key = required_key(settings.key_env, settings.type, find_key) if settings.key_env else None
        self._faults = Faults(f"{settings.type} ({settings.model})", key)
        # A server that asks for no key gets none; the SDK would send it OPENAI_API_KEY.
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", max_retries=0)

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """One answer.

        Raises:
            ProviderUnavailable: busy, broken down, not reached, or cut off in mid-answer.
            GgufFlowError: refused, too long for its context, or not what its schema says.
        """
        answer = StreamedAnswer(request, on_token)
        with self._faults.of_sdk(openai, _message):
            timeout = openai.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
            stream = self._client.chat.completions.create(**self._body(request), timeout=timeout)
            with closing(stream):
                for chunk in stream:
                    self._take(answer, chunk)
        if answer.finish_reason is None:
            raise self._faults.passing("the answer broke off in the middle")
        return answer.result()

    def close(self) -> None:
        """Ends what is under way."""
        self._client.close()

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        settings, sampling = self._settings, request.sampling
        of_its_own = settings.of_its_own
        chosen = {name: getattr(sampling, name) for name in request.chosen}
        extra = {of_its_own[name]: value for name, value in chosen.items() if name in of_its_own}
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": _messages(request),
            settings.preset.most_tokens: sampling.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": extra | settings.extra,
        }
        for name in ("temperature", "top_p", "seed"):
            if name in chosen:
                body[name] = chosen[name]
        if chosen.get("stop"):
            body["stop"] = list(sampling.stop)
        if schema := schema_of(request):
            named = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        if settings.logprobs and request.constraint and request.constraint.logprobs:
            body["logprobs"] = True
        return body

    def _take(self, answer: StreamedAnswer, chunk: Any) -> None:
        answer.answered_by = chunk.model or answer.answered_by
        if chunk.usage:
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.completion_tokens = chunk.usage.completion_tokens
            details = chunk.usage.prompt_tokens_details
            answer.cached_prompt_tokens = details.cached_tokens if details else None
        for choice in chunk.choices or ():
            if choice.logprobs and choice.logprobs.content:
                _take_logprobs(answer, choice.logprobs.content)
            if choice.delta:
                beyond = choice.delta.model_extra or {}
                answer.thought(beyond.get("reasoning_content") or beyond.get("reasoning"))
                answer.text(choice.delta.content)
            if choice.finish_reason:
                if choice.finish_reason not in _ENDED:
                    raise self._faults.refused(f"the answer ended with finish_reason '{choice.finish_reason}'")
                answer.finish_reason = _ENDED[choice.finish_reason]


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes a schema: no object may have properties that are optional or not named.

    Source: https://platform.openai.com/docs/guides/structured-outputs, "Supported schemas".
    """
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        named = set(schema.get("properties", ()))
        if schema.get("additionalProperties") is not False or named != set(schema.get("required", ())):
            return False
    return all(map(is_strict, schema.values()))


def _messages(request: GenerateRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in request.messages]
    if request.images:
        seen = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.images]
        messages[-1]["content"] = [*seen, {"type": "text", "text": messages[-1]["content"]}]
    return messages


def _take_logprobs(answer: StreamedAnswer, tokens: Any) -> None:
    ends = answer.n_bytes
    for token in tokens:
        ends += len(token.bytes if token.bytes is not None else token.token.encode())
        answer.logprobs.append((ends, token.logprob))


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    code = body.get("code") if isinstance(body, dict) else None
    text = said if isinstance(said, str) else json.dumps(said) if said else ""
    return f"{text} ({code})" if isinstance(code, str) and code not in text else text
