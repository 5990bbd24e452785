"""A model behind any HTTP API that takes JSON and gives JSON: the body is a template, the answer a JSON pointer."""

import json
from typing import Any

import httpx
import jinja2
from jsonpointer import JsonPointer, JsonPointerException

from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.images import data_url
from llm_core.providers.faults import SILENT, Faults, required_key
from llm_core.providers.protocol import FindKey, ProviderCapabilities
from llm_core.providers.settings import CHOSEN, CustomHttpSettings, body_environment, filled_in, names_in
from llm_core.providers.streamed_answer import CONNECT_TIMEOUT_S, SILENCE_S, StreamedAnswer, schema_of
from llm_core.worker import OnToken


class CustomHttp:
    """One POST per answer, which comes whole.

    Raises:
        ConfigError: a variable that the headers name is not set.
    """

    def __init__(self, settings: CustomHttpSettings, capabilities: ProviderCapabilities, find_key: FindKey) -> None:
        self.capabilities, self._settings = capabilities, settings
        named = {name for value in settings.headers.values() for name in names_in(value)}
        values = {name: required_key(name, settings.type, find_key) for name in sorted(named)}
        self._faults = Faults(f"custom_http ({settings.model})", *values.values())
        self._template = body_environment.from_string(settings.body)
        headers = {name: filled_in(value, values) for name, value in settings.headers.items()}
        self._client = httpx.Client(headers={"Content-Type": "application/json", **headers})

    def generate(self, request: GenerateRequest, on_token: OnToken | None = None) -> GenerateResult:
        """One answer.

        Raises:
            ProviderUnavailable: busy, broken down or not reached.
            GgufFlowError: refused, or no answer where the pointer leads.
        """
        answer = StreamedAnswer(request, on_token)
        timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_TIMEOUT_S)
        try:
            response = self._client.post(self._settings.url, content=self._body(request), timeout=timeout)
        except httpx.TimeoutException:
            raise self._faults.passing(SILENT) from None
        except httpx.HTTPError as error:
            raise self._faults.passing(f"the connection failed: {error}") from None
        if not response.is_success:
            raise self._faults.of_status(response.status_code, response.text, response.headers)
        try:
            said = response.json()
        except ValueError as error:
            raise self._faults.passing(f"what it answers is no JSON: {error}") from None
        answer.text(self._found(said))
        answer.prompt_tokens = _count(said, self._settings.prompt_tokens)
        answer.completion_tokens = _count(said, self._settings.completion_tokens)
        answer.finish_reason = "stop"
        return answer.result()

    def close(self) -> None:
        """Ends what is under way."""
        self._client.close()

    def _body(self, request: GenerateRequest) -> str:
        sampling = request.sampling
        by_role = dict(request.messages)
        variables: dict[str, Any] = dict.fromkeys(CHOSEN)
        variables |= {name: getattr(sampling, name) for name in request.chosen}
        variables |= {
            "model": self._settings.model,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "system": by_role.get("system"),
            "prompt": by_role["user"],
            "max_tokens": sampling.max_tokens,
            "response_schema": schema_of(request),
            "images": [data_url(image) for image in request.images],
        }
        try:
            body = self._template.render(variables)
            json.loads(body)
        except jinja2.TemplateError as error:
            raise self._faults.refused(f"body: {error.message or type(error).__name__}") from None
        except ValueError as error:
            raise self._faults.refused(f"body makes no JSON ({error}); write {{{{ prompt | tojson }}}}") from None
        return body

    def _found(self, said: Any) -> str:
        pointer = self._settings.answer
        try:
            found = JsonPointer(pointer).resolve(said)
        except JsonPointerException:
            raise self._faults.refused(f"nothing at {pointer} in what it answers: {json.dumps(said)[:200]}") from None
        if not isinstance(found, str):
            raise self._faults.refused(f"no text at {pointer} in what it answers, but {json.dumps(found)[:100]}")
        return found


def _count(said: Any, pointer: str | None) -> int | None:
    found = JsonPointer(pointer).resolve(said, None) if pointer else None
    return found if isinstance(found, int) and not isinstance(found, bool) else None
