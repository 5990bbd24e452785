"""The model host as a real process with a real model, asked by the official OpenAI client and by hand."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from pydantic import BaseModel

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import ConfigError, ContextOverflow, ModelCrashed
from llm_core.generation import GenerateRequest
from llm_core.host_address import host_token, read_address
from llm_core.host_pool import HostPool
from tests.conftest import REPOSITORY, Project

MODELS = """
models:
  small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 12, temperature: 0.5}}
  gone: {file: gone.gguf}
"""
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


@contextmanager
def running_host(cache: Path, *options: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """`gguf-flow host` on a free port, until the block ends; it must then leave no process."""
    command = [sys.executable, "-m", "flows", "host", "--port", "0", *options]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    host = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    deadline = time.monotonic() + 60
    while not read_address(cache) and host.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        yield host
    finally:
        host.send_signal(signal.SIGINT)
        try:
            host.wait(timeout=20)
        except subprocess.TimeoutExpired:
            host.kill()


@pytest.fixture(scope="module")
def host_project(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Iterator[Project]:
    project = Project.make(tmp_path_factory.mktemp("host"))
    project.models(MODELS)
    project.pipeline("base_pipeline: {stages: [{id: a, model: small}]}")
    project.link_model(smollm, "small.gguf")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project.path)
        patched.setenv("GGUF_FLOW_CACHE_DIR", str(project.path / "cache"))
        with running_host(project.path / "cache"):
            yield project


@pytest.fixture
def url(host_project: Project) -> str:
    address = read_address(host_project.path / "cache")
    assert address
    return address.url


@pytest.fixture
def client(host_project: Project, url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=host_token(host_project.path / "cache"), max_retries=0)


@pytest.fixture
def by_hand(host_project: Project, url: str) -> httpx.Client:
    token = host_token(host_project.path / "cache")
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def test_official_client_lists_the_models_that_are_here(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]


def test_official_client_gets_an_answer_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=[{"role": "system", "content": "Be brief."}, *QUESTION], temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage
    assert answer.usage.prompt_tokens == 24
    assert answer.usage.total_tokens == 24 + answer.usage.completion_tokens


def test_model_that_the_api_loads_answers_several_at_once(client: openai.OpenAI, by_hand: httpx.Client) -> None:
    client.chat.completions.create(model="small", messages=QUESTION)
    (resident,) = by_hand.get("/models/status").json()["models"]
    assert resident["load"]["sequences"] == 4


def test_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def drawn(seed: int) -> str | None:
        answer = client.chat.completions.create(model="small", messages=QUESTION, temperature=1.5, seed=seed)
        return answer.choices[0].message.content

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_stream_adds_up_to_the_answer_and_tells_usage_at_its_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="small", messages=QUESTION, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="small", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "inhabitants": {"type": "integer"}},
    "required": ["city", "inhabitants"],
    "additionalProperties": False,
}


def city_format(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "city", "schema": schema, "strict": True}}


@pytest.mark.parametrize("max_tokens", [3, 60])
def test_official_client_gets_json_by_its_schema_cut_off_or_not(client: openai.OpenAI, max_tokens: int) -> None:
    answer = client.chat.completions.create(
        model="small", messages=QUESTION, response_format=city_format(CITY), max_tokens=max_tokens, seed=1
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert (type(value["city"]), type(value["inhabitants"])) == (str, int)
    assert answer.choices[0].finish_reason == ("length" if max_tokens == 3 else "stop")


def test_official_client_gets_an_object_of_any_kind(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="small", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=30, seed=1
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_official_client_parses_a_pydantic_model(client: openai.OpenAI) -> None:
    class City(BaseModel):
        city: str
        inhabitants: int

    answer = client.chat.completions.parse(
        model="small", messages=QUESTION, response_format=City, max_tokens=60, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, City)


def test_streamed_json_is_whole_where_it_was_cut_off(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        model="small", messages=QUESTION, response_format=city_format(CITY), max_tokens=4, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert set(json.loads(text)) == {"city", "inhabitants"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"response_format": city_format({"not": {}})}, openai.BadRequestError, "not: cannot be enforced while"),
        ({"response_format": {"type": "xml"}}, openai.BadRequestError, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "'json_schema' goes with the type"),
        ({"model": "smal"}, openai.NotFoundError, "model 'smal' cannot be used: it is not in models.yaml"),
        ({"model": "gone"}, openai.NotFoundError, "model 'gone' cannot be used"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"n": 2}, openai.BadRequestError, "n: "),
        ({"logprobs": True}, openai.BadRequestError, "logprobs"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, openai.BadRequestError, "n_ctx is 512"),
    ],
)
def test_what_cannot_be_done_is_refused_as_openai_would(
    client: openai.OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], message: str
) -> None:
    with pytest.raises(error) as refusal:
        client.chat.completions.create(**{"model": "small", "messages": QUESTION, **options})
    assert message in str(refusal.value)


def test_nothing_but_health_answers_without_the_token(url: str) -> None:
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    for path in ("/v1/models", "/models/status"):
        assert httpx.get(f"{url}{path}").status_code == 401
    for path in ("/v1/chat/completions", "/models/load", "/models/unload", "/pool/generate", "/pool/hold"):
        wrong = httpx.post(f"{url}{path}", json={}, headers={"Authorization": "Bearer wrong"})
        assert wrong.status_code == 401


def test_token_file_is_for_its_user_alone(host_project: Project) -> None:
    mode = (host_project.path / "cache" / "host-token").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_models_are_loaded_and_unloaded_on_demand(by_hand: httpx.Client) -> None:
    assert by_hand.post("/models/load", json={"model": "small"}).status_code == 200
    status = by_hand.get("/models/status").json()
    assert [model["model"] for model in status["models"]] == ["small"]
    count = status["load_count"]
    by_hand.post("/models/load", json={"model": "small"})
    assert by_hand.get("/models/status").json()["load_count"] == count, "it was there"
    assert by_hand.post("/models/unload", json={"model": "small"}).json() == {"unloaded": 1, "in_use": 0}
    assert by_hand.get("/models/status").json()["models"] == []
    refused = by_hand.post("/models/load", json={"model": "gone"})
    assert refused.status_code == 409
    assert "model 'gone' cannot be used" in refused.json()["error"]


@pytest.fixture
def pool(host_project: Project) -> Iterator[HostPool]:
    pool = HostPool(host_project.path / "cache")
    yield pool
    pool.close()


@pytest.fixture
def load(host_project: Project) -> LoadParams:
    return LoadParams(str(host_project.path / "models" / "small.gguf"), 512)


def ask(question: str, **sampling: Any) -> GenerateRequest:
    return GenerateRequest((("user", question),), SamplingParams(**{"temperature": 0, "max_tokens": 8, **sampling}))


def test_run_gets_results_and_errors_of_the_host_as_of_its_own_pool(pool: HostPool, load: LoadParams) -> None:
    pieces: list[tuple[str, int]] = []
    result = pool.generate(load, "small", ask("What is ice?", stop=("zzz",)), lambda *piece: pieces.append(piece))
    assert "".join(text for text, _ in pieces).strip() == result.text
    assert pieces[-1][1] == result.completion_tokens == 8
    with pytest.raises(ContextOverflow, match="model 'small': the prompt has"):
        pool.generate(load, "small", ask("word " * 600))


def test_host_is_also_found_by_its_address(host_project: Project, url: str, load: LoadParams) -> None:
    by_address = HostPool(host_project.path / "cache", url)
    assert by_address.generate(load, "small", ask("Hi")).completion_tokens > 0
    by_address.close()


def test_address_where_no_host_answers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ModelCrashed, match=r"model host at http://127\.0\.0\.1:9 does not answer .*GGUF_FLOW_HOST_URL$"
    ):
        HostPool(tmp_path, "http://127.0.0.1:9")


def test_token_that_the_host_does_not_know_is_one_line(
    host_project: Project, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GGUF_FLOW_HOST_TOKEN", "wrong")
    with pytest.raises(ConfigError) as refused:
        HostPool(host_project.path / "cache")
    said = f"the model host at {url} refuses the token; set GGUF_FLOW_HOST_TOKEN to the one it has"
    assert str(refused.value) == said


def test_run_that_stops_listening_ends_its_generation(pool: HostPool, load: LoadParams) -> None:
    class Enough(Exception):
        pass

    def stop(text: str, n_tokens: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        pool.generate(load, "small", ask("Write a long story.", max_tokens=400), stop)
    deadline = time.monotonic() + 10
    while any(resident.users for resident in pool.status()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_model_is_held_while_the_connection_lasts(pool: HostPool, load: LoadParams, by_hand: httpx.Client) -> None:
    pool.generate(load, "small", ask("Hi"))
    with pool.hold(load):
        assert by_hand.post("/models/unload", json={"model": "small"}).json()["in_use"] >= 1
    deadline = time.monotonic() + 10
    while by_hand.post("/models/unload", json={"model": "small"}).json()["in_use"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_host_does_not_bind_elsewhere_without_a_token_of_ones_own(project: Project) -> None:
    project.models("models: {}")
    command = [sys.executable, "-m", "flows", "host", "--bind", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert refused.returncode == 2
    assert refused.stderr == (
        "gguf-flow: the model host binds to 0.0.0.0 only with a token of your own in GGUF_FLOW_HOST_TOKEN\n"
    )


def test_port_in_use_is_one_line(project: Project, url: str) -> None:
    project.models("models: {}")
    command = [sys.executable, "-m", "flows", "host", "--port", url.rpartition(":")[2]]
    refused = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert refused.returncode == 2
    assert "Address already in use; set GGUF_FLOW_HOST_PORT" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_model_outlives_the_host_and_its_runs_are_told(project: Project, smollm: Path, sig: int) -> None:
    project.models(MODELS)
    project.link_model(smollm, "small.gguf")
    cache = project.path / "cache"
    with running_host(cache) as host:
        pool = HostPool(cache)
        load = LoadParams(str(project.path / "models" / "small.gguf"), 512)
        pool.generate(load, "small", ask("Hi"))
        workers = psutil.Process(host.pid).children(recursive=True)
        assert workers
        with pytest.raises(ModelCrashed, match=r"model 'small'"):
            pool.generate(load, "small", ask("Write a long story.", max_tokens=400), lambda *_: os.kill(host.pid, sig))
        host.wait(timeout=20)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
        assert read_address(cache) is None
