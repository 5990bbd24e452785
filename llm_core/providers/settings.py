"""What `provider:` of models.yaml may say, by type."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, field_validator, model_validator

from llm_core.documents import Document

DEFAULT_CONCURRENCY = 4
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key")
_NAME_IN_TEXT = re.compile(r"\$\{(\w+)\}")
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


class ProviderSettings(Document):
    """What all of them have in common."""

    type: str
    model: str | None = Field(None, description="as the provider calls it; left out: the name in models.yaml")
    max_concurrency: int = Field(DEFAULT_CONCURRENCY, ge=1, le=1000, description="calls at a time, of one run")


@dataclass(frozen=True)
class Preset:
    """A server that speaks OpenAI's protocol: where it is, which key it takes, and what it takes beyond OpenAI's."""

    base_url: str | None
    key_env: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    """Our name of a parameter → its own."""
    most_tokens: str = "max_tokens"
    """What it calls the limit of an answer."""


_REPETITION = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"}
PRESETS = {
    "openai_compatible": Preset(None),
    "openai": Preset("https://api.openai.com/v1", "OPENAI_API_KEY", most_tokens="max_completion_tokens"),
    "openrouter": Preset("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", _REPETITION),
    "together": Preset("https://api.together.xyz/v1", "TOGETHER_API_KEY", _REPETITION),
    "lmstudio": Preset("http://localhost:1234/v1", None, {"top_k": "top_k", "repeat_penalty": "repeat_penalty"}),
    "vllm": Preset("http://localhost:8000/v1", None, _REPETITION),
    "sglang": Preset("http://localhost:30000/v1", None, _REPETITION),
    "ollama": Preset("http://localhost:11434/v1"),
}
"""Ports and parameter names from each server's own documentation."""


class OpenAISettings(ProviderSettings):
    """A chat API as OpenAI's, there or elsewhere."""

    base_url: str | None = Field(None, description="left out: the preset's, or $OPENAI_COMPATIBLE_BASE_URL")
    api_key_env: VariableName | None = Field(None, description="the variable, or Secret block, that holds the key")
    images: bool = Field(False, description="whether the model can see")
    response_schema: bool = Field(True, description="whether the server knows `response_format` with a JSON schema")
    logprobs: bool = Field(False, description="whether the server tells how probable tokens were; for field_vote")
    parameters: dict[str, str] = Field(
        default_factory=dict, description="of top_k, min_p, repeat_penalty: what the server calls those that it takes"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="more fields of the request's JSON, as they are")

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        return None if url is None else plain_url(url)

    @field_validator("parameters")
    @classmethod
    def _known_parameters(cls, parameters: dict[str, str]) -> dict[str, str]:
        for name in parameters:
            if name not in _REPETITION:
                raise ValueError(f"'{name}' is none of {', '.join(_REPETITION)}")
        return parameters

    @property
    def preset(self) -> Preset:
        return PRESETS[self.type]

    @property
    def key_env(self) -> str | None:
        return self.api_key_env or (None if self.base_url else self.preset.key_env)

    @property
    def of_its_own(self) -> dict[str, str]:
        """Parameters beyond OpenAI's, and what the server calls them."""
        return {**self.preset.parameters, **self.parameters}


class AnthropicSettings(ProviderSettings):
    """Anthropic's messages API."""

    base_url: str = "https://api.anthropic.com"
    api_key_env: VariableName = "ANTHROPIC_API_KEY"
    images: bool = True
    response_schema: bool = Field(True, description="whether the model knows `output_config` with a JSON schema")
    extra: dict[str, Any] = Field(default_factory=dict, description="more fields of the request's JSON, as they are")

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        return plain_url(url)


class CustomHttpSettings(ProviderSettings):
    """Any HTTP API that takes JSON and answers with JSON."""

    url: str
    headers: dict[str, str] = Field(default_factory=dict, description="${NAME} stands for a variable or Secret block")
    body: str = Field(description="jinja2, which makes the request's JSON")
    answer: str = Field(description="JSON pointer to the answer's text")
    prompt_tokens: str | None = Field(None, description="JSON pointer")
    completion_tokens: str | None = Field(None, description="JSON pointer")

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        return plain_url(url)

    @field_validator("answer", "prompt_tokens", "completion_tokens")
    @classmethod
    def _pointer(cls, pointer: str | None) -> str | None:
        if pointer and (not pointer.startswith("/") or re.search("~(?![01])", pointer)):
            raise ValueError(f"'{pointer}' is no JSON pointer; one begins with '/', like /choices/0/text")
        return pointer

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for name, value in self.headers.items():
            if name.lower() in _SECRET_HEADERS and not _NAME_IN_TEXT.search(value):
                raise ValueError(f"headers.{name}: write ${{MY_KEY}}, and put the key into that variable")
        return self

    @model_validator(mode="after")
    def _valid_body(self) -> Self:
        try:
            unknown = self.variables - BODY_VARIABLES
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"body: line {error.lineno}: {error.message}") from None
        if unknown:
            known = ", ".join(sorted(BODY_VARIABLES))
            raise ValueError(f"body: unknown variable '{min(unknown)}'; known: {known}")
        return self

    @property
    def variables(self) -> frozenset[str]:
        """What the body's template makes use of."""
        return frozenset(meta.find_undeclared_variables(body_environment.parse(self.body)))


CHOSEN = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "stop")
"""Parameters of sampling that an API may take."""
BODY_VARIABLES = frozenset(
    {*CHOSEN, "model", "messages", "system", "prompt", "max_tokens", "response_schema", "images"}
)
body_environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)


def names_in(text: str) -> list[str]:
    """The `${NAME}`s of a text."""
    return _NAME_IN_TEXT.findall(text)


def filled_in(text: str, values: dict[str, str]) -> str:
    """`text` with the values of its `${NAME}`s."""
    return _NAME_IN_TEXT.sub(lambda match: values[match[1]], text)


def plain_url(url: str) -> str:
    """`url` without a slash at its end; one with a password in it would be kept in sessions."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no URL; expected http://… or https://…")
    if parts.username or parts.password:
        raise ValueError("a URL with a user or a password in it; put the key into a variable")
    return url.rstrip("/")
