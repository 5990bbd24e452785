"""Providers by name: gguf-flow's own, and those of others by the entry point group `gguf_flow.providers`."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, cast

from pydantic import ValidationError

from llm_core.documents import describe, near_name
from llm_core.errors import ConfigError
from llm_core.providers.protocol import FindKey, Provider, ProviderCapabilities
from llm_core.providers.settings import (
    CHOSEN,
    PRESETS,
    AnthropicSettings,
    CustomHttpSettings,
    OpenAISettings,
    ProviderSettings,
)

GROUP = "gguf_flow.providers"


@dataclass(frozen=True)
class ProviderKind:
    """How models of one type of provider are described, and reached. An entry point leads to one of these."""

    settings: type[ProviderSettings]
    capabilities: Callable[[Any], ProviderCapabilities]
    """Of a model with these settings; asked without a connection."""
    open: Callable[[Any, FindKey], Provider]
    """Raises `ConfigError` where a key is missing."""


@dataclass(frozen=True)
class RemoteModel:
    """A model behind an API, as models.yaml describes it; without any secret."""

    provider: str
    model: str
    """As the provider calls it."""
    settings: str
    """As JSON, so that calls can be compared."""


def remote_model(name: str, written: str | Mapping[str, Any]) -> RemoteModel:
    """`provider:` of the model `name`: the type of a provider, or a mapping with it.

    Raises:
        ValueError: one line; what is wrong with it.
    """
    mapping = {"type": written} if isinstance(written, str) else dict(written)
    if not isinstance(mapping.get("type"), str):
        raise ValueError(f"provider: needs 'type'; one of {', '.join(_names())}")
    kind = find_kind(mapping["type"])
    try:
        settings = kind.settings.model_validate(mapping)
    except ValidationError as error:
        raise ValueError(f"provider: {describe(error)}") from None
    settings = settings.model_copy(update={"model": settings.model or name})
    return RemoteModel(
        settings.type, cast(str, settings.model), json.dumps(settings.model_dump(mode="json"), sort_keys=True)
    )


def capabilities_of(remote: RemoteModel) -> ProviderCapabilities:
    """What can be asked of a model; nothing is connected to."""
    kind, settings = _read(remote)
    return kind.capabilities(settings)


def open_provider(remote: RemoteModel, find_key: FindKey) -> Provider:
    """The provider of one model, ready to be asked.

    Raises:
        ConfigError: its key is missing, or its SDK.
    """
    kind, settings = _read(remote)
    try:
        return kind.open(settings, find_key)
    except ImportError as error:
        raise ConfigError(
            f"provider '{remote.provider}' needs {error.name or error}: pip install 'gguf-flow[providers]'"
        ) from None


def max_concurrency(remote: RemoteModel) -> int:
    """Calls of one run that may be under way at a time."""
    return int(json.loads(remote.settings)["max_concurrency"])


@cache
def find_kind(name: str) -> ProviderKind:
    """The provider of a type.

    Raises:
        ValueError: there is none of that name.
    """
    if name in PRESETS:
        return ProviderKind(OpenAISettings, _of_openai, _open_openai)
    if name == "anthropic":
        return ProviderKind(AnthropicSettings, _of_anthropic, _open_anthropic)
    if name == "custom_http":
        return ProviderKind(CustomHttpSettings, _of_custom_http, _open_custom_http)
    for point in entry_points(group=GROUP, name=name):
        try:
            kind = point.load()
        except Exception as error:
            raise ValueError(f"provider '{name}' ({point.value}): {type(error).__name__}: {error}") from None
        if not isinstance(kind, ProviderKind):
            raise ValueError(f"provider '{name}': {point.value} is no ProviderKind")
        return kind
    raise ValueError(f"unknown provider '{name}'{near_name(name, _names())}")


def _names() -> list[str]:
    return [*PRESETS, "anthropic", "custom_http", *entry_points(group=GROUP).names]


def _read(remote: RemoteModel) -> tuple[ProviderKind, ProviderSettings]:
    kind = find_kind(remote.provider)
    return kind, kind.settings.model_validate_json(remote.settings)


def _of_openai(settings: OpenAISettings) -> ProviderCapabilities:
    parameters = frozenset({"temperature", "top_p", "seed", "stop", *settings.of_its_own})
    return ProviderCapabilities(parameters, settings.response_schema, images=settings.images)


def _open_openai(settings: OpenAISettings, find_key: FindKey) -> Provider:
    from llm_core.providers.openai_compatible import OpenAICompatible

    return OpenAICompatible(settings, _of_openai(settings), find_key)


def _of_anthropic(settings: AnthropicSettings) -> ProviderCapabilities:
    return ProviderCapabilities(frozenset({"stop"}), settings.response_schema, images=settings.images)


def _open_anthropic(settings: AnthropicSettings, find_key: FindKey) -> Provider:
    from llm_core.providers.anthropic_messages import AnthropicMessages

    return AnthropicMessages(settings, _of_anthropic(settings), find_key)


def _of_custom_http(settings: CustomHttpSettings) -> ProviderCapabilities:
    used = settings.variables
    return ProviderCapabilities(used & frozenset(CHOSEN), "response_schema" in used, images="images" in used)


def _open_custom_http(settings: CustomHttpSettings, find_key: FindKey) -> Provider:
    from llm_core.providers.custom_http import CustomHttp

    return CustomHttp(settings, _of_custom_http(settings), find_key)
