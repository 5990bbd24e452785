"""The OpenAI protocol: what is sent, what is read, and every way a server can fail. Servers on loopback."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from llm_core.constraints import schema_constraint
from llm_core.errors import (
    ConfigError,
    ConstraintError,
    ContextOverflow,
    GenerationTimeout,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from llm_core.images import make_image
from tests.llm_core.providers.chat_server import (
    ANSWER,
    KEY,
    PNG,
    PNG_BASE64,
    USAGE,
    chunk,
    in_a_run,
    provider,
    request,
    sse,
    streamed,
)

PATH = "/v1/chat/completions"
SCHEMA = {
    "type": "object",
    "properties": {"what": {"type": "string"}, "cold": {"type": "boolean"}},
    "required": ["what", "cold"],
    "additionalProperties": False,
}


def written(server: HTTPServer, **more: Any) -> dict[str, Any]:
    return {"type": "openai_compatible", "base_url": server.url_for("/v1"), **more}


def sent(server: HTTPServer) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(server.log[-1][0].get_data())
    return body


def test_answer_comes_in_pieces_with_its_figures(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    seen: list[tuple[str, int]] = []
    result = provider(written(httpserver)).generate(request(), lambda text, n: seen.append((text, n)))
    assert result.text == "Frozen water."
    assert seen == [("Frozen", 1), (" water", 2), (".", 3)]
    assert (result.prompt_tokens, result.cached_prompt_tokens, result.completion_tokens) == (12, 4, 3)
    assert (result.finish_reason, result.answered_by) == ("stop", "tiny-2026")
    assert (result.tokens, result.prompt, result.build, result.load_s, result.peak_rss_bytes) == (None,) * 5


def test_only_what_was_chosen_is_sent(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    asked = request(("temperature", "seed", "stop"), temperature=0.0, seed=7, stop=("\n",), top_p=0.3)
    provider(written(httpserver)).generate(asked)
    assert sent(httpserver) == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is ice?"}],
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "seed": 7,
        "stop": ["\n"],
    }


def test_server_gets_parameters_by_its_own_names_and_extra_fields(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    asked = request(("top_k", "repeat_penalty"), top_k=5, repeat_penalty=1.1)
    told = {"type": "vllm", "base_url": httpserver.url_for("/v1"), "model": "org/big", "extra": {"priority": 3}}
    provider(told).generate(asked)
    body = sent(httpserver)
    assert (body["model"], body["top_k"], body["repetition_penalty"], body["priority"]) == ("org/big", 5, 1.1, 3)


def test_server_that_asks_for_no_key_gets_none_of_another(
    httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    provider(written(httpserver)).generate(request())
    assert KEY not in str(dict(httpserver.log[-1][0].headers))
    provider(written(httpserver, api_key_env="MY_KEY")).generate(request())
    assert httpserver.log[-1][0].headers["Authorization"] == f"Bearer {KEY}"


def test_missing_key_and_address_are_said_before_anything_is_asked() -> None:
    with pytest.raises(
        ConfigError, match=r"^provider 'openai' needs a key: set OPENAI_API_KEY, or make a Secret block"
    ):
        provider({"type": "openai"}, lambda name: None)
    with pytest.raises(ConfigError, match=r"needs 'base_url' in models\.yaml, or OPENAI_COMPATIBLE_BASE_URL$"):
        provider({"type": "openai_compatible"}, lambda name: None)


def test_address_may_come_from_the_environment(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    found = {"OPENAI_COMPATIBLE_BASE_URL": httpserver.url_for("/v1")}
    assert provider({"type": "openai_compatible"}, found.get).generate(request()).text == "Frozen water."


def test_images_stand_before_the_text(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    provider(written(httpserver)).generate(replace(request(), images=(make_image(PNG, "ice.png"),)))
    assert sent(httpserver)["messages"][1]["content"] == [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG_BASE64}"}},
        {"type": "text", "text": "What is ice?"},
    ]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_that_the_server_keeps_apart_is_kept_apart(httpserver: HTTPServer, key: str) -> None:
    thought = chunk(delta={key: "Cold…"})
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(thought, chunk("Water.", "stop"))))
    result = provider(written(httpserver)).generate(request())
    assert (result.text, result.reasoning) == ("Water.", "Cold…")


def test_reasoning_within_the_text_is_taken_out_where_the_model_says_so(httpserver: HTTPServer) -> None:
    body = sse(chunk("<think>Cold…</think>Water.", "stop"))
    httpserver.expect_request(PATH).respond_with_response(streamed(body))
    result = provider(written(httpserver)).generate(replace(request(), strip_reasoning=True))
    assert (result.text, result.reasoning) == ("Water.", "Cold…")


def test_schema_is_passed_on(httpserver: HTTPServer) -> None:
    answer = '{"what": "water", "cold": true}'
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk(answer, "stop"))))
    result = provider(written(httpserver)).generate(replace(request(), constraint=schema_constraint(SCHEMA)))
    assert result.text == answer
    named = {"name": "answer", "schema": SCHEMA, "strict": True}
    assert sent(httpserver)["response_format"] == {"type": "json_schema", "json_schema": named}


def test_schema_that_strict_mode_does_not_take_is_not_called_strict(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk('{"what": "x"}', "stop"))))
    optional = {**SCHEMA, "required": ["what"]}
    provider(written(httpserver)).generate(replace(request(), constraint=schema_constraint(optional)))
    assert sent(httpserver)["response_format"]["json_schema"]["strict"] is False


def test_answer_that_breaks_its_schema_is_an_error(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk('{"what": 3}', "stop"))))
    with pytest.raises(ConstraintError, match="does not match response_schema"):
        provider(written(httpserver)).generate(replace(request(), constraint=schema_constraint(SCHEMA)))


def test_answer_that_was_cut_off_is_completed(httpserver: HTTPServer) -> None:
    half = '{\n  "what": "frozen, hard: wa'
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk(half, "length"))))
    constraint = schema_constraint(SCHEMA)
    result = provider(written(httpserver)).generate(replace(request(), constraint=constraint))
    assert result.truncated
    assert json.loads(result.text)["what"].startswith("frozen, hard: wa")
    strict = replace(constraint, on_truncation="error")
    with pytest.raises(ConstraintError, match="cut off at max_tokens"):
        provider(written(httpserver)).generate(replace(request(), constraint=strict))


def test_log_probabilities_end_at_bytes_of_the_text(httpserver: HTTPServer) -> None:
    token = {"token": "ä", "bytes": [195, 164], "logprob": -0.5, "top_logprobs": []}
    other = {"token": "b", "bytes": None, "logprob": -0.25, "top_logprobs": []}
    body = sse(chunk('"', logprobs=None), chunk("äb", "stop", logprobs={"content": [token, other]}))
    httpserver.expect_request(PATH).respond_with_response(streamed(body))
    constraint = replace(schema_constraint(True), schema=None, logprobs=True)
    result = provider(written(httpserver, logprobs=True)).generate(replace(request(), constraint=constraint))
    assert result.logprobs == ((3, -0.5), (4, -0.25))
    assert sent(httpserver)["logprobs"] is True


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_busy_and_broken_servers_may_do_better(httpserver: HTTPServer, status: int) -> None:
    refusal = Response('{"error": {"message": "later, please"}}', status, {"Retry-After": "7"})
    httpserver.expect_request(PATH).respond_with_response(refusal)
    with pytest.raises(
        ProviderUnavailable, match=rf"^openai_compatible \(tiny\): {status}.*: later, please$"
    ) as caught:
        provider(written(httpserver)).generate(request())
    assert caught.value.retry_after_s == 7.0
    assert len(httpserver.log) == 1, "the SDK must leave retries to Prefect"


@pytest.mark.parametrize(
    ("status", "kind"), [(400, RequestRefused), (422, RequestRefused), (401, ProviderError), (404, ProviderError)]
)
def test_refusals_are_not_retried(httpserver: HTTPServer, status: int, kind: type[Exception]) -> None:
    httpserver.expect_request(PATH).respond_with_json({"error": {"message": f"wrong key {KEY}\nno"}}, status)
    with pytest.raises(kind) as caught:
        provider(written(httpserver, api_key_env="MY_KEY")).generate(request())
    assert type(caught.value) is kind
    assert str(caught.value).endswith(": wrong key … no")


def test_question_too_long_for_its_context_is_called_so(httpserver: HTTPServer) -> None:
    error = {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}
    httpserver.expect_request(PATH).respond_with_json({"error": error}, 400)
    with pytest.raises(ContextOverflow, match="maximum context length is 8192"):
        provider(written(httpserver)).generate(request())


def test_server_that_asks_for_too_much_patience_has_failed(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(Response("", 429, {"Retry-After": "3600"}))
    with pytest.raises(ProviderError, match="asks to be left alone for 3600 s") as caught:
        provider(written(httpserver)).generate(request())
    assert not isinstance(caught.value, ProviderUnavailable)


def test_answer_that_is_filtered_is_refused(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk("Fr", "content_filter"))))
    with pytest.raises(RequestRefused, match="finish_reason 'content_filter'"):
        provider(written(httpserver)).generate(request())


BROKEN = {
    "ends in the middle": (sse(chunk("Frozen"), done=False), "the answer broke off in the middle"),
    "is done too early": (sse(chunk("Frozen")), "the answer broke off in the middle"),
    "is no JSON": ("data: {oops\n\n", "what it streams is no JSON"),
    "is an error": (sse(chunk("Fro"), {"error": {"message": "out of memory"}}), "an error in the middle of the answer"),
    "is empty": ("", "the answer broke off in the middle"),
    "is a page": ("<html>gateway</html>", "the answer broke off in the middle"),
}


@pytest.mark.parametrize(("body", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_stream_may_do_better(httpserver: HTTPServer, body: str, said: str) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(body))
    with pytest.raises(ProviderUnavailable, match=said):
        provider(written(httpserver)).generate(request())


def test_connection_that_is_cut_may_do_better(httpserver: HTTPServer) -> None:
    """The body is shorter than its Content-Length says."""

    def cut(asked: Request) -> Response:
        response = streamed(sse(chunk("Frozen"), done=False))
        response.headers["Content-Length"] = "100000"
        return response

    httpserver.expect_request(PATH).respond_with_handler(cut)
    with pytest.raises(ProviderUnavailable, match="the connection failed"):
        provider(written(httpserver)).generate(request())


def test_server_that_is_not_there_may_come_back() -> None:
    nobody = {"type": "openai_compatible", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(ProviderUnavailable, match=r"the connection failed: .*refused"):
        provider(nobody).generate(request())


def test_slow_answer_is_ended_in_time(httpserver: HTTPServer) -> None:
    """The server goes on for 5 s; each of its pieces comes quickly."""

    def slowly() -> Iterator[bytes]:
        for _ in range(50):
            yield sse(chunk("on and "), done=False).encode()
            time.sleep(0.1)

    httpserver.expect_request(PATH).respond_with_handler(
        lambda asked: Response(slowly(), content_type="text/event-stream")
    )
    with pytest.raises(GenerationTimeout, match=r"took longer than timeout_s \(0\.5\)"):
        in_a_run(written(httpserver)).generate(request(timeout_s=0.5))


def test_silent_server_is_left_in_time(httpserver: HTTPServer) -> None:
    def silent(asked: Request) -> Response:
        time.sleep(2)
        return streamed(ANSWER)

    httpserver.expect_request(PATH).respond_with_handler(silent)
    with pytest.raises(GenerationTimeout, match=r"took longer than timeout_s \(0\.3\)"):
        in_a_run(written(httpserver)).generate(request(timeout_s=0.3))


def test_figures_that_are_not_told_are_unknown(httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk("Water.", "stop"))))
    result = provider(written(httpserver)).generate(request())
    assert (result.prompt_tokens, result.completion_tokens, result.tokens_per_s) == (None, None, None)
    assert result.text == "Water."


def test_usage_may_stand_in_the_last_chunk_with_the_text(httpserver: HTTPServer) -> None:
    last = chunk("Water.", "stop") | {"usage": {**USAGE["usage"], "prompt_tokens_details": None}}
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(last)))
    result = provider(written(httpserver)).generate(request())
    assert (result.completion_tokens, result.cached_prompt_tokens) == (3, None)
