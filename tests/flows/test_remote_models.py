"""Remote models in real runs: real servers with real models on loopback, and servers that fail on purpose."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.replay_command import replay_session
from flows.rerun import rerun
from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import ConfigError
from llm_core.host_address import host_token, read_address
from llm_core.machine import budget, read_machine
from llm_core.machine_lock import machine_lock
from llm_core.pipeline import load_pipeline
from llm_core.session_files import load_session
from llm_core.settings import Settings
from tests.conftest import REPOSITORY, Project
from tests.llm_core.providers.chat_server import ANSWER, KEY, chunk, sse, streamed
from tests.llm_core.test_host import running_host

pytestmark = pytest.mark.usefixtures("prefect_server")
PATH = "/v1/chat/completions"
LOCAL = "small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0}}"


@pytest.fixture(autouse=True)
def file(project: Project, smollm: Path) -> None:
    project.link_model(smollm, "small.gguf")


def models(project: Project, server: HTTPServer, **more: Any) -> None:
    """`small` on this machine, and `far` behind the server."""
    provider = {"type": "openai_compatible", "base_url": server.url_for("/v1"), **more}
    project.models(f"models:\n  {LOCAL}\n  far: {{provider: {json.dumps(provider)}}}\n")


def one_stage(project: Project, stage: str, **more: Any) -> None:
    project.pipeline(f"base_pipeline: {json.dumps(more)[:-1]}{', ' * bool(more)}stages: [{stage}]}}")


async def run(question: str = "What is ice?") -> PipelineResult:
    result: PipelineResult = await compile_flow(load_pipeline(Settings().pipeline_file))(question=question)
    return result


def busy(retry_after: str) -> Response:
    return Response('{"error": {"message": "slow down"}}', 429, {"Retry-After": retry_after})


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Iterator[dict[str, str]]:
    """gguf-flow's own model host, as another machine would see it: an address and a token."""
    elsewhere = Project.make(tmp_path_factory.mktemp("host"))
    elsewhere.models("models: {hosted: {file: small.gguf, overrides: {n_ctx: 512}}}")
    elsewhere.pipeline("base_pipeline: {stages: [{id: a, model: hosted}]}")
    elsewhere.link_model(smollm, "small.gguf")
    cache = elsewhere.path / "cache"
    folders = {"GGUF_FLOW_CONFIG_DIR": str(elsewhere.path / "config"), "GGUF_FLOW_CACHE_DIR": str(cache)}
    with running_host(cache, **folders):
        address = read_address(cache)
        assert address
        yield {"url": f"{address.url}/v1", "token": host_token(cache)}


@pytest.fixture(scope="module")
def llama_server(variants: dict[str, Path]) -> Iterator[str]:
    """`python -m llama_cpp.server` with another file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", str(variants["Q8_0"]), "--port", str(port), "--n_ctx", "512", "--n_threads", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "llama_cpp.server", *options, "--model_alias", "theirs"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GOMP_SPINCOUNT": "1000"},
    )
    url = f"http://127.0.0.1:{port}/v1"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{url}/models").is_success:
                    break
            except httpx.HTTPError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(10)


async def test_local_model_our_host_and_another_server_answer_in_one_stage(
    project: Project, host: dict[str, str], llama_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_TOKEN_ELSEWHERE", host["token"])
    with_key = f'type: openai_compatible, base_url: "{host["url"]}", api_key_env: HOST_TOKEN_ELSEWHERE'
    project.models(f"""
        models:
          {LOCAL}
          hosted: {{provider: {{{with_key}}}}}
          theirs: {{provider: {{type: openai_compatible, base_url: "{llama_server}"}}}}
        """)
    one_stage(project, "{id: panel, models: [small, hosted, theirs], generation: {temperature: 0, max_tokens: 8}}")
    result = await run("What is the capital of France?")
    steps = {step.member: step for step in result.steps if step.member}
    assert list(steps) == ["small", "hosted", "theirs"]
    # The same file, greedily: what the host says over HTTP is what the model says here.
    assert steps["hosted"].text == steps["small"].text
    assert steps["theirs"].text.strip()
    assert (steps["hosted"].completion_tokens, steps["hosted"].answered_by) == (8, "hosted")
    assert steps["hosted"].parameters["provider"] == "openai_compatible"
    assert (steps["theirs"].load_s, steps["theirs"].tokens) == (None, None)
    assert steps["theirs"].ttft_s
    written = "".join(path.read_text() for path in result.session_path.iterdir() if path.is_file())
    assert host["token"] not in written


async def test_schema_holds_on_our_host_as_it_does_here(
    project: Project, host: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_TOKEN_ELSEWHERE", host["token"])
    project.models(
        f'models: {{hosted: {{provider: {{type: openai_compatible, base_url: "{host["url"]}", '
        "api_key_env: HOST_TOKEN_ELSEWHERE}}}"
    )
    city = "properties: {city: {type: string, maxLength: 20}}, required: [city]"
    schema = f"{{type: object, {city}, additionalProperties: false}}"
    one_stage(project, f"{{id: a, model: hosted, response_schema: {schema}}}")
    (step,) = (await run("Which city is the capital of France? Answer as JSON.")).steps
    assert list(step.parsed) == ["city"]


async def test_retry_waits_as_long_as_the_provider_asks(project: Project, httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request(PATH).respond_with_response(busy("1"))
    httpserver.expect_ordered_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far}")
    result = await run()
    assert result.answer == "Frozen water."
    async with get_client() as client:
        flow_run_id = load_session(project.sessions, result.session_id).flow_run_id
        ours = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        (task_run,) = [
            task_run for task_run in await client.read_task_runs(flow_run_filter=ours) if task_run.name == "a: far"
        ]
        assert "provider:openai_compatible" in task_run.tags
        states = await client.read_task_run_states(task_run.id)
    waiting = next(state for state in states if state.name == "AwaitingRetry")
    assert waiting.state_details.scheduled_time
    assert 0.5 < (waiting.state_details.scheduled_time - waiting.timestamp).total_seconds() < 1.5


def test_ctrl_c_ends_a_run_that_waits_before_a_retry(project: Project, httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(busy("200"))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_HOME": str(project.path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows", "run", "What is ice?"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        said = next(line for line in process.stderr if "again in" in line)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, "200 s would have been asked for"
        assert "interrupted; finished steps are in the session" in process.stderr.read()
    assert said.endswith("429 Too Many Requests: slow down; again in 200 s\n")
    assert load_session(project.sessions, "session_001").status == "cancelled"
    assert psutil.wait_procs(children, timeout=10)[1] == [], "the temporary Prefect server has gone, too"


async def test_refusal_is_not_retried_and_says_who_refused(project: Project, httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_json({"error": {"message": "no such model"}}, 404)
    models(project, httpserver)
    one_stage(project, "{id: a, model: far}")
    said = r"step 'a: far' failed: model 'far': openai_compatible \(far\): 404 Not Found: no such model$"
    with pytest.raises(PipelineFailed, match=said):
        await run()
    assert len(httpserver.log) == 1


@pytest.mark.parametrize("body", ["data: {oops\n\n", sse(chunk("Fro"), done=False)], ids=["malformed", "cut"])
async def test_broken_stream_is_asked_for_again(project: Project, httpserver: HTTPServer, body: str) -> None:
    httpserver.expect_ordered_request(PATH).respond_with_response(streamed(body))
    httpserver.expect_ordered_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far}")
    assert (await run()).answer == "Frozen water."


async def test_slow_answer_is_ended_and_not_asked_for_again(project: Project, httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_handler(lambda asked: time.sleep(0.8) or streamed(ANSWER))  # type: ignore[func-returns-value]
    models(project, httpserver)
    one_stage(project, "{id: a, model: far, generation: {timeout_s: 0.3}}")
    with pytest.raises(PipelineFailed, match=r"the answer took longer than timeout_s \(0\.3\)"):
        await run()
    await asyncio.sleep(1.5)
    assert len(httpserver.log) == 1


async def test_fallback_answers_after_the_retries_and_the_session_says_who_did(
    project: Project, httpserver: HTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    httpserver.expect_request(PATH).respond_with_response(busy("0"))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far, retries: 1, fallback: small}")
    result = await run()
    (step,) = result.steps
    assert len(httpserver.log) == 2
    assert (step.member, step.model, step.completion_tokens) == ("far", "small", 8)
    note = (
        "a: far: small answered in place of far: model 'far': openai_compatible (far): 429 Too Many Requests: slow down"
    )
    assert result.degraded == (note,)
    assert load_session(project.sessions, result.session_id).degraded == (note,)
    # The local fallback can be checked like any local model.
    assert replay_session(result.session_id, Settings(), verify=True, as_json=False) == 0
    assert "identical" in capsys.readouterr().out


async def test_fallback_is_asked_at_once_after_a_refusal_and_both_reasons_are_given(
    project: Project, httpserver: HTTPServer
) -> None:
    httpserver.expect_request(PATH).respond_with_json({"error": {"message": "no such model"}}, 404)
    models(project, httpserver)
    one_stage(project, "{id: a, model: far, fallback: [small], generation: {stop: x}}")
    long = "What is ice, and where can it be found? " * 60
    with pytest.raises(PipelineFailed, match=r"404 Not Found: no such model; then model 'small': the prompt has"):
        await run(long)


async def test_remote_judge_is_asked_freely_and_its_words_are_read(project: Project, httpserver: HTTPServer) -> None:
    """No grammar can be sent; that of a local judge allows nothing but a number."""
    httpserver.expect_request(PATH).respond_with_response(streamed(sse(chunk("Answer 2 is the better one.", "stop"))))
    models(project, httpserver)
    members = "[small, {model: small, instructions: Answer with a question.}]"
    one_stage(project, f"{{id: a, models: {members}, aggregation: {{type: judge, judge_model: far}}}}")
    result = await run()
    first, second, judged = result.steps
    assert first.text != second.text
    assert (judged.text, judged.model, result.answer) == (second.text, "far", second.text)
    assert "response_format" not in json.loads(httpserver.log[0][0].get_data())


async def test_replay_leaves_remote_steps_unchecked_and_rerun_asks_again(
    project: Project, httpserver: HTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far}, {id: b, model: small}")
    first = await run()
    assert replay_session(first.session_id, Settings(), verify=True, as_json=False) == 3
    assert "remote: openai_compatible" in capsys.readouterr().out
    again = await rerun(first.session_id, "a")
    assert again.answer == first.answer
    assert len(httpserver.log) == 2
    kept = await rerun(first.session_id, "b")
    assert kept.answer == first.answer
    assert len(httpserver.log) == 2


async def test_missing_key_starts_nothing(project: Project, httpserver: HTTPServer) -> None:
    models(project, httpserver, api_key_env="NOBODY_SET_THIS")
    one_stage(project, "{id: a, model: far}")
    with pytest.raises(ConfigError, match="model 'far': provider 'openai_compatible' needs a key: set NOBODY_SET_THIS"):
        await run()
    assert list(project.sessions.iterdir()) == []


@pytest.mark.parametrize("place", ["secret block", ".env"])
async def test_key_may_lie_in_a_secret_block_or_in_a_file_beside_the_project(
    project: Project, httpserver: HTTPServer, place: str
) -> None:
    name = f"KEY_IN_{place.strip('.').replace(' ', '_').upper()}"
    if place == ".env":
        (project.path / ".env").write_text(f"{name}={KEY}\n")
    else:
        await Secret(value=KEY).save("key-in-secret-block", overwrite=True)  # type: ignore[misc]
    headers = {"Authorization": f"Bearer {KEY}"}
    httpserver.expect_request(PATH, headers=headers).respond_with_response(streamed(ANSWER))
    models(project, httpserver, api_key_env=name)
    one_stage(project, "{id: a, model: far}")
    result = await run()
    assert result.answer == "Frozen water."
    assert KEY not in "".join(path.read_text() for path in result.session_path.iterdir())


async def test_run_of_remote_models_alone_does_not_wait_for_the_machine(
    project: Project, httpserver: HTTPServer
) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far}")
    settings = Settings()
    taken = budget(read_machine(), settings.limits)
    with machine_lock(settings.cache_folder / "locks", taken, lambda line: None):
        assert (await asyncio.wait_for(run(), 60)).answer == "Frozen water."


async def test_identical_call_is_answered_from_the_cache(project: Project, httpserver: HTTPServer) -> None:
    httpserver.expect_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver)
    one_stage(project, "{id: a, model: far, cache: true, generation: {seed: 3}}")
    first, second = await run(), await run()
    assert (first.answer, len(httpserver.log)) == (second.answer, 1)
    assert second.steps[0].reused_from == first.session_id


class Counting:
    """A server that knows how many questions it was asked at once, and answers each with its own text."""

    def __init__(self, server: HTTPServer) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()
        server.expect_request(PATH).respond_with_handler(self.answer)

    def answer(self, asked: Request) -> Response:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.3)
        with self._lock:
            self.now -= 1
        question = json.loads(asked.get_data())["messages"][-1]["content"]
        return streamed(sse(chunk(f"to {question}", "stop")))


def dataset(project: Project, n: int) -> Path:
    path = project.path / "q.jsonl"
    path.write_text("".join(f'{{"question": "q{number}"}}\n' for number in range(1, n + 1)))
    return path


@pytest.fixture
def threaded(make_httpserver: HTTPServer) -> Iterator[HTTPServer]:
    server = HTTPServer(threaded=True)
    server.start()
    yield server
    server.stop()


async def test_dataset_asks_so_many_at_once_as_the_provider_allows(project: Project, threaded: HTTPServer) -> None:
    counting = Counting(threaded)
    models(project, threaded, max_concurrency=3)
    one_stage(project, "{id: a, model: far}")
    result = await batch(dataset(project, 12))
    rows = [json.loads(line) for line in result.output.read_text().splitlines()]
    assert [row["result"]["answer"] for row in rows] == [f"to q{n}" for n in range(1, 13)]
    assert counting.most == 3


async def test_dataset_waits_for_a_busy_provider_item_by_item(project: Project, httpserver: HTTPServer) -> None:
    httpserver.expect_ordered_request(PATH).respond_with_response(busy("0"))
    for _ in range(3):
        httpserver.expect_ordered_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver, max_concurrency=1)
    one_stage(project, "{id: a, model: far}")
    result = await batch(dataset(project, 3))
    assert (result.n_failed, len(httpserver.log)) == (0, 4)


async def test_dataset_ends_where_the_provider_is_at_fault_and_resume_asks_what_is_missing(
    project: Project, httpserver: HTTPServer
) -> None:
    httpserver.expect_ordered_request(PATH).respond_with_response(streamed(ANSWER))
    for _ in range(3):
        httpserver.expect_ordered_request(PATH).respond_with_json({"error": {"message": "pay first"}}, 402)
    for _ in range(5):
        httpserver.expect_ordered_request(PATH).respond_with_response(streamed(ANSWER))
    models(project, httpserver, max_concurrency=1)
    one_stage(project, "{id: a, model: far}")
    with pytest.raises(PipelineFailed, match="402 Payment Required: pay first"):
        await batch(dataset(project, 6))
    result = await batch(dataset(project, 6), resume=True)
    assert (result.n_failed, len(httpserver.log)) == (0, 9)


async def test_dataset_row_of_a_refused_question_is_an_error_and_the_others_are_answered(
    project: Project, httpserver: HTTPServer
) -> None:
    for number in range(5):
        refused = httpserver.expect_ordered_request(PATH)
        if number == 4:
            refused.respond_with_response(streamed(ANSWER))
        else:
            refused.respond_with_json({"error": {"message": "not this one"}}, 400)
    models(project, httpserver, max_concurrency=1)
    one_stage(project, "{id: a, model: far}")
    result = await batch(dataset(project, 5))
    rows = [json.loads(line)["result"] for line in result.output.read_text().splitlines()]
    assert [row["answer"] for row in rows] == [None] * 4 + ["Frozen water."]
    assert rows[0]["error"] == "1 a: far: model 'far': openai_compatible (far): 400 Bad Request: not this one"
