"""Images in requests of the official OpenAI client: seen by a real model in a real host, or refused."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pytest_httpserver import HTTPServer

from llm_core.host_address import host_token, read_address
from tests.conftest import Project
from tests.llm_core.pictures import png
from tests.llm_core.test_host import running_host
from tests.llm_core.tiny_mmproj import write_tiny_mmproj

MODELS = """
defaults: {n_ctx: 256, max_tokens: 8, temperature: 0}
models: {v: {file: a.gguf, mmproj: eyes.gguf}, blind: {file: a.gguf}}
"""
RED, BLUE = png(), png(colour=(0, 0, 255))


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, smollm: Path, make_httpserver: HTTPServer
) -> Iterator[openai.OpenAI]:
    project = Project.make(tmp_path_factory.mktemp("host"))
    project.models(MODELS)
    project.pipeline("base_pipeline: {stages: [{id: a, model: v}]}")
    project.link_model(smollm, "a.gguf")
    write_tiny_mmproj(project.path / "models" / "eyes.gguf")
    (project.path / "cat.png").write_bytes(RED)
    cache = project.path / "cache"
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project.path)
        patched.setenv("GGUF_FLOW_CACHE_DIR", str(cache))
        hosts = f"{make_httpserver.host}:{make_httpserver.port}"
        with running_host(cache, GGUF_FLOW_IMAGE_HOSTS=hosts):
            address = read_address(cache)
            assert address
            yield openai.OpenAI(base_url=f"{address.url}/v1", api_key=host_token(cache), max_retries=0)


def part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{b64encode(data).decode()}"


def ask(client: openai.OpenAI, *urls: str, model: str = "v") -> tuple[str, int]:
    """The answer, and how many tokens the prompt had."""
    content: Any = [*map(part, urls), {"type": "text", "text": "What is it?"}]
    found = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}])
    assert found.usage
    return found.choices[0].message.content or "", found.usage.prompt_tokens


def test_images_as_data_and_from_a_listed_host_are_seen(client: openai.OpenAI, httpserver: HTTPServer) -> None:
    httpserver.expect_request("/cat").respond_with_data(RED)
    blind, plain = ask(client, model="blind"), ask(client)  # the same file without its eyes is loaded first
    red, blue = ask(client, data_url(RED)), ask(client, data_url(BLUE))
    assert blind == plain
    assert len({plain[0], red[0], blue[0]}) == 3
    assert (red[1], ask(client, data_url(RED), data_url(BLUE))[1]) == (plain[1] + 16, plain[1] + 32)
    assert ask(client, httpserver.url_for("/cat")) == red


@pytest.mark.parametrize(
    ("url", "model", "message"),
    [
        (data_url(RED), "blind", "model 'blind' cannot see images; give it an 'mmproj' in models.yaml"),
        (data_url(RED[:40]), "v", "damaged: it cannot be decoded as png"),
        (data_url(b"<svg/>"), "v", "image data:image/png;base64,…: neither PNG, JPEG, WebP nor GIF"),
        ("data:image/png;base64,%%%", "v", "image data:image/png;base64,…: not base64: "),
        ("https://example.org/a.png", "v", "host 'example.org' is not allowed; add it to GGUF_FLOW_IMAGE_HOSTS"),
        ("cat.png", "v", "image 'cat.png': expected data:…;base64,… or http(s)://…"),
        ("file:///etc/hostname", "v", "expected http(s)://host/…"),
    ],
)
def test_what_cannot_be_seen_is_refused(client: openai.OpenAI, url: str, model: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, url, model=model)
    assert message in str(refusal.value)


@pytest.mark.parametrize("role", ["user", "assistant"])
def test_image_before_the_last_message_is_refused(client: openai.OpenAI, role: str) -> None:
    messages: Any = [{"role": role, "content": [part(data_url(RED))]}, {"role": "user", "content": "What is it?"}]
    with pytest.raises(openai.BadRequestError, match="images are taken in the last message only, the user's"):
        client.chat.completions.create(model="v", messages=messages)
