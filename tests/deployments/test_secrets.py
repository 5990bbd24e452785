"""Keys and tokens of the environment are in nothing that runs leave behind: files, database, results, logs, output."""

import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from llm_core.host_address import TOKEN_VARIABLE, read_address
from tests.conftest import REPOSITORY, Project
from tests.deployments.served import Served, free_port
from tests.llm_core.providers.chat_server import ANSWER, streamed

KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENROUTER_API_KEY", "TOGETHER_API_KEY")
SECRETS = {name: f"planted-{name.lower().replace('_', '-')}-5e6f7a8b9c" for name in (TOKEN_VARIABLE, *KEYS)}
BEARER = {"Authorization": f"Bearer {SECRETS['OPENAI_API_KEY']}"}
WRONG_TOKEN = "planted-wrong-token-0a1b2c3d4e"
MARKER = "is-it-seen-at-all-1f2e3d4c5b"
"""Stands in a question, so that the search is known to find what is there."""
MODELS = """
models:
  small: {file: small.gguf, overrides: {n_ctx: 512, max_tokens: 4, temperature: 0.5}}
  gone: {file: gone.gguf, source: 'hf:org/repo/gone.gguf'}
  far: {provider: {type: openai_compatible, base_url: 'SERVER/v1', api_key_env: OPENAI_API_KEY}}
  refused: {provider: {type: anthropic, base_url: 'SERVER'}}
"""
PIPELINES = """
base_pipeline: {stages: [{id: draft, model: small}, {id: panel, models: [small, small], aggregation: concat}]}
pipelines:
  absent: {stages: [{id: a, model: gone}]}
  remote: {stages: [{id: a, model: far}, {id: b, model: refused}]}
"""


@pytest.fixture
def served_with_secrets(
    tmp_path: Path, smollm: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """A `serve` whose environment holds every secret, and which logs all it can, to the API, too."""
    project = Project.make(tmp_path)
    project.models(MODELS.replace("SERVER", httpserver.url_for("").rstrip("/")))
    project.pipeline(PIPELINES)
    project.link_model(smollm, "small.gguf")
    httpserver.expect_request("/org/repo/resolve/main/gone.gguf").respond_with_data("", status=401)
    answer = streamed(ANSWER)
    httpserver.expect_request("/v1/chat/completions", headers=BEARER).respond_with_response(answer)
    httpserver.expect_request("/v1/messages").respond_with_handler(repeat_the_key)
    environment = SECRETS | {
        "GGUF_FLOW_CACHE_DIR": str(tmp_path / "cache"),
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "HF_ENDPOINT": httpserver.url_for("").rstrip("/"),
        "HF_HOME": str(tmp_path / "hub"),
        "NO_PROXY": "localhost,127.0.0.1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    served = Served(project, free_port())
    served.wait_for(lambda: "serving batch/batch" in served.said)
    yield served
    if served.process.poll() is None:
        served.stop(signal.SIGINT)


def repeat_the_key(request: Request) -> Response:
    """As servers do that want to be helpful."""
    body = {"error": {"type": "authentication_error", "message": f"what is {dict(request.headers)}?"}}
    return Response(json.dumps(body), 401, content_type="application/json")


def gguf_flow(served: Served, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in the project; what it prints is kept beside the rest."""
    env = {"PREFECT_HOME": str(served.project.path / "prefect-of-commands"), "PYTHONPATH": str(REPOSITORY)}
    env["PREFECT_API_URL"] = f"http://127.0.0.1:{served.port}/api"
    command = [sys.executable, "-m", "flows", *arguments]
    done = subprocess.run(
        command, cwd=served.project.path, env=os.environ | env | environment, capture_output=True, text=True
    )
    kept = served.project.path / f"output-of-{arguments[0]}.log"
    kept.write_text(done.stdout + done.stderr)
    return done


def use_everything(served: Served) -> None:
    """Runs that succeed and runs that fail; requests that are let in and requests that are not."""
    path = served.project.path
    (path / "q.jsonl").write_text('{"question": "What is ice?"}\n')
    assert served.run("base", question=f"What is {MARKER}?")["state_type"] == "COMPLETED", served.said
    assert served.run("rerun", session="session_001", from_stage="panel")["state_type"] == "COMPLETED"
    assert served.run("batch", dataset=str(path / "q.jsonl"))["state_type"] == "COMPLETED"
    assert "n_ctx is 512" in served.run("base", question="word " * 2000)["state"]["message"]
    assert "'gone'" in served.run("absent", question="Why?")["state"]["message"]

    assert "401 Unauthorized: what is" in served.run("remote", question="Why?")["state"]["message"]

    address = read_address(path / "cache")
    assert address
    refused = gguf_flow(served, "run", "What is ice?", **{TOKEN_VARIABLE: WRONG_TOKEN})
    said = f"gguf-flow: the model host at {address.url} refuses the token; set {TOKEN_VARIABLE} to the one it has\n"
    assert (refused.returncode, refused.stderr.endswith(said)) == (2, True), refused.stderr
    assert "401 UNAUTHORIZED" in gguf_flow(served, "models", "pull", "gone").stderr
    assert gguf_flow(served, "sessions", "show", "session_001", "--json").returncode == 0

    with httpx.Client(base_url=address.url, timeout=60) as client:
        wrong = client.get("/v1/models", headers={"Authorization": f"Bearer {WRONG_TOKEN}"})
        assert wrong.status_code == 401
        client.headers["Authorization"] = f"Bearer {SECRETS[TOKEN_VARIABLE]}"
        question = {"model": "small", "messages": [{"role": "user", "content": "What is ice?"}]}
        assert client.post("/v1/chat/completions", json=question).status_code == 200
        assert client.post("/pool/generate", json={"no": "request"}).status_code == 500


def forms(text: str) -> list[bytes]:
    """As it is, and as it looks inside base64, in which Prefect keeps results, at each of three offsets."""
    encoded = (base64.b64encode(b" " * offset + text.encode())[4:-4] for offset in range(3))
    return [text.encode(), *encoded]


def files_with(folder: Path, text: str) -> set[str]:
    wanted = forms(text)
    found = set()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if any(form in content for form in wanted):
                found.add(str(path.relative_to(folder)))
    return found


def test_no_secret_of_the_environment_is_in_anything_that_is_written(
    served_with_secrets: Served, httpserver: HTTPServer
) -> None:
    use_everything(served_with_secrets)
    used = {request.headers["Authorization"].removeprefix("Bearer ") for request, _ in httpserver.log}
    assert used == {SECRETS[name] for name in ("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")}, "secrets are in use"
    assert "KeyError" in served_with_secrets.said, "the host's log is among what is searched"
    assert served_with_secrets.api.post("/logs/filter", json={}).json(), "logs are in the database"
    assert served_with_secrets.stop(signal.SIGINT) == []

    folder = served_with_secrets.project.path
    seen = files_with(folder, MARKER)
    for place in ("sessions/session_001/session.json", "prefect/prefect.db", "prefect/storage/", "output-of-sessions"):
        assert any(path.startswith(place) for path in seen), f"{place} not in {seen}"
    assert {name: files_with(folder, secret) for name, secret in SECRETS.items()} == {name: set() for name in SECRETS}
    assert files_with(folder, WRONG_TOKEN) == set()
