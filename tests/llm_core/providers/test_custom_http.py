"""Any API that takes JSON: the body is a template, the answer a JSON pointer. Servers on loopback."""

from dataclasses import replace
from typing import Any

import pytest
from pytest_httpserver import HTTPServer

from llm_core.errors import ConfigError, GenerationTimeout, ProviderError, ProviderUnavailable, RequestRefused
from llm_core.images import make_image
from llm_core.providers.registry import capabilities_of, remote_model
from tests.llm_core.providers.chat_server import KEY, PNG, PNG_BASE64, in_a_run, provider, request

BODY = (
    '{"inputs": {{ prompt | tojson }}, "system": {{ system | tojson }}, "n": {{ max_tokens }}, "t": {{ temperature }}}'
)


def written(server: HTTPServer, **more: Any) -> dict[str, Any]:
    return {"type": "custom_http", "url": server.url_for("/say"), "body": BODY, "answer": "/out/0/text", **more}


def test_body_is_made_and_the_answer_found(httpserver: HTTPServer) -> None:
    body = {"inputs": "What is ice?", "system": "Be brief.", "n": 50, "t": 0.5}
    said = {"out": [{"text": "Frozen water."}], "used": {"in": 5, "out": 3}}
    headers = {"X-Key": f"key {KEY}", "Content-Type": "application/json"}
    httpserver.expect_request("/say", "POST", json=body, headers=headers).respond_with_json(said)
    counts = {"prompt_tokens": "/used/in", "completion_tokens": "/used/out"}
    asked = request(("temperature",), temperature=0.5)
    result = provider(written(httpserver, headers={"X-Key": "key ${MY_KEY}"}, **counts)).generate(asked)
    assert (result.text, result.prompt_tokens, result.completion_tokens) == ("Frozen water.", 5, 3)


def test_it_can_be_asked_for_what_its_template_uses() -> None:
    mapping = {"type": "custom_http", "url": "http://x/y", "answer": "/a"}
    plain = capabilities_of(remote_model("m", mapping | {"body": BODY}))
    assert (plain.parameters, plain.response_schema) == ({"temperature"}, False)
    more = capabilities_of(remote_model("m", mapping | {"body": "[{{ seed }}, {{ response_schema | tojson }}]"}))
    assert (more.parameters, more.response_schema) == ({"seed"}, True)


def test_images_are_urls_for_the_template(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/say", json=[f"data:image/png;base64,{PNG_BASE64}"]).respond_with_json(
        {"out": [{"text": "Ice."}]}
    )
    asked = replace(request(), images=(make_image(PNG, "ice.png"),))
    assert provider(written(httpserver, body="{{ images | tojson }}")).generate(asked).text == "Ice."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "ftp://x"}, "provider: url: 'ftp://x' is no URL; expected http://… or https://…"),
        ({"url": "https://me:pw@x/y"}, "provider: url: a URL with a user or a password in it"),
        ({"answer": "out"}, "provider: answer: 'out' is no JSON pointer; one begins with '/'"),
        ({"body": "{{ promt }}"}, "provider: body: unknown variable 'promt'; known: "),
        ({"body": "{{ prompt"}, "provider: body: line 1: unexpected end of template"),
        ({"headers": {"Authorization": "Bearer sk-1"}}, "provider: headers.Authorization: write ${MY_KEY}, and put"),
        ({"anwser": "/x"}, "provider: unknown key 'anwser'; did you mean 'answer'?"),
    ],
)
def test_what_is_wrong_in_models_yaml_is_one_line(change: dict[str, Any], said: str) -> None:
    mapping = {"type": "custom_http", "url": "http://x/y", "answer": "/a", "body": BODY}
    with pytest.raises(ValueError, match="provider") as caught:
        remote_model("m", mapping | change)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_variable_of_a_header_must_be_set(httpserver: HTTPServer) -> None:
    with pytest.raises(ConfigError, match="needs a key: set OTHER_KEY"):
        provider(written(httpserver, headers={"X-Key": "${OTHER_KEY}"}))


def test_body_that_is_no_json_is_said(httpserver: HTTPServer) -> None:
    with pytest.raises(RequestRefused, match=r"body makes no JSON \(.*\); write \{\{ prompt \| tojson \}\}"):
        provider(written(httpserver, body='{"q": {{ prompt }}}')).generate(request())


@pytest.mark.parametrize("said", [{"out": []}, {"out": [{"text": 3}]}, [1]])
def test_answer_that_is_not_where_it_should_be_is_said(httpserver: HTTPServer, said: Any) -> None:
    httpserver.expect_request("/say").respond_with_json(said)
    with pytest.raises(ProviderError, match="at /out/0/text in what it answers"):
        provider(written(httpserver)).generate(request(("temperature",)))


def test_faults_of_the_server(httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request("/say").respond_with_data("busy", 503)
    httpserver.expect_ordered_request("/say").respond_with_data("<html>")
    httpserver.expect_ordered_request("/say").respond_with_data(f"no such key: {KEY}", 403)
    asked = request(("temperature",))
    model = provider(written(httpserver, headers={"X-Key": "${MY_KEY}"}))
    with pytest.raises(ProviderUnavailable, match="503 Service Unavailable: busy"):
        model.generate(asked)
    with pytest.raises(ProviderUnavailable, match="what it answers is no JSON"):
        model.generate(asked)
    with pytest.raises(ProviderError, match="403 Forbidden: no such key: …"):
        model.generate(asked)


def test_silent_server_is_left_in_time(httpserver: HTTPServer) -> None:
    import time

    httpserver.expect_request("/say").respond_with_handler(lambda asked: time.sleep(1) or None)  # type: ignore[arg-type, func-returns-value]
    with pytest.raises(GenerationTimeout, match=r"timeout_s \(0\.2\)"):
        in_a_run(written(httpserver)).generate(request(("temperature",), timeout_s=0.2))
