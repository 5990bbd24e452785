"""Providers by name, those of others, and how many calls at once."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_core.errors import ConfigError, ProviderError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.providers.protocol import ProviderCapabilities
from llm_core.providers.registry import ProviderKind, RemoteModel, capabilities_of, find_kind, remote_model
from llm_core.providers.remote import RemoteModels
from llm_core.providers.settings import ProviderSettings
from llm_core.registry import ModelsDocument
from tests.conftest import REPOSITORY
from tests.llm_core.providers.chat_server import request


class Counting:
    """Answers after a moment; knows how many were at it at once."""

    capabilities = ProviderCapabilities(frozenset())

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def generate(self, request: GenerateRequest, on_token: Any = None) -> GenerateResult:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.2)
        with self._lock:
            self.now -= 1
        raise KeyError("what\nnow")

    def close(self) -> None: ...


def test_name_alone_is_enough_for_a_preset() -> None:
    found = remote_model("qwen3:4b", "ollama")
    assert (found.provider, found.model) == ("ollama", "qwen3:4b")
    assert capabilities_of(found).parameters == {"temperature", "top_p", "seed", "stop"}
    assert "top_k" in capabilities_of(remote_model("m", "openrouter")).parameters


def test_model_may_have_another_name_there() -> None:
    assert remote_model("big", {"type": "openrouter", "model": "meta/llama"}).model == "meta/llama"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("opnai", "unknown provider 'opnai'; did you mean 'openai'?"),
        ({}, "provider: needs 'type'; one of openai_compatible, openai, "),
        ({"type": "vllm", "base_url": "vllm:8000"}, "provider: base_url: 'vllm:8000' is no URL"),
        ({"type": "vllm", "api_key": "sk-1"}, "provider: unknown key 'api_key'; did you mean 'api_key_env'?"),
        ({"type": "vllm", "max_concurrency": 0}, "provider: max_concurrency: input should be greater than"),
        ({"type": "vllm", "parameters": {"top_p": "x"}}, "provider: parameters: 'top_p' is none of top_k, min_p"),
    ],
)
def test_wrong_settings_are_one_line(written: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r"^(provider|unknown)") as caught:
        remote_model("m", written)
    assert str(caught.value).startswith(said)


def outsiders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Any) -> None:
    """An installed package whose entry point `counting` leads to `made`."""
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gguf_flow.providers]\ncounting = others_providers:KIND\n")
    (tmp_path / "others_providers.py").write_text("KIND = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    find_kind.cache_clear()
    __import__("others_providers")
    monkeypatch.setattr(sys.modules["others_providers"], "KIND", made)


def test_provider_of_others_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = Counting()
    kind = ProviderKind(ProviderSettings, lambda settings: made.capabilities, lambda settings, find_key: made)
    outsiders(monkeypatch, tmp_path, kind)
    remote = remote_model("m", {"type": "counting", "max_concurrency": 3})
    models = RemoteModels([("m", remote)], lambda name: None)
    said: list[str] = []

    def ask() -> None:
        try:
            models.of(remote).generate(request())
        except ProviderError as error:
            said.append(str(error))

    askers = [threading.Thread(target=ask) for _ in range(9)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert made.most == 3, "max_concurrency"
    assert said == ["model 'm': KeyError: 'what\\nnow'"] * 9


def test_entry_point_that_leads_to_something_else_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    outsiders(monkeypatch, tmp_path, "no kind")
    with pytest.raises(ValueError, match=r"provider 'counting': others_providers:KIND is no ProviderKind"):
        remote_model("m", "counting")


def test_missing_sdk_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "llm_core.providers.openai_compatible", raising=False)
    with pytest.raises(
        ConfigError, match=r"^model 'm': provider 'vllm' needs openai: pip install 'gguf-flow\[providers\]'"
    ):
        RemoteModels([("m", remote_model("m", "vllm"))], lambda name: None)


def test_settings_hold_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    found: RemoteModel = remote_model("m", "openai")
    assert "sk-planted" not in found.settings


def test_remote_models_of_the_readme_are_read() -> None:
    section = (REPOSITORY / "README.md").read_text().partition("### Remote models")[2]
    written = yaml.safe_load(section.split("```")[1].removeprefix("yaml"))
    models = ModelsDocument.model_validate(written).models
    providers = {name: remote_model(name, entry.provider) for name, entry in models.items() if entry.provider}
    assert {name: remote.provider for name, remote in providers.items()} == {
        "gpt-4o-mini": "openai",
        "claude": "anthropic",
        "qwen": "vllm",
        "own": "custom_http",
    }
