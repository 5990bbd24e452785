"""Where images come from, what is refused, and how they travel and are kept."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Response

from llm_core import image_sources
from llm_core.answer_cache import AnswerCache
from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import InputError, SessionError
from llm_core.generation import GenerateRequest, pack_request, unpack_request
from llm_core.image_size import image_size
from llm_core.image_sources import ImageSources
from llm_core.images import make_image
from llm_core.session import Session
from llm_core.session_export import export_session
from llm_core.session_files import load_session
from llm_core.session_images import kept_image, refs
from llm_core.settings import Settings
from tests.llm_core.pictures import GIF, png
from tests.llm_core.test_session import create
from tests.llm_core.tiny_gguf import write_tiny_gguf

JPEG = bytes.fromhex("ffd8ffe000104a46494600")
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L"


@pytest.fixture
def sources(tmp_path: Path) -> ImageSources:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "cat.png").write_bytes(png())
    (tmp_path / "project" / "cat.png").write_bytes(png())
    return ImageSources(tmp_path / "project")


def refusal(sources: ImageSources, source: str) -> str:
    with pytest.raises(InputError) as refused:
        sources.load(source)
    return str(refused.value)


def of_server(httpserver: HTTPServer, root: Path) -> ImageSources:
    return ImageSources(root, hosts=(f"{httpserver.host}:{httpserver.port}",))


@pytest.mark.parametrize(
    ("data", "media_type"),
    [(png(), "image/png"), (JPEG, "image/jpeg"), (GIF, "image/gif"), (WEBP, "image/webp")],
)
def test_kind_is_told_by_the_first_bytes(data: bytes, media_type: str) -> None:
    assert make_image(data, "cat.txt").media_type == media_type


@pytest.mark.parametrize("data", [b"", b"BM6\0", b"<svg/>", b"RIFF\x1a\0\0\0WAVE", b"\x89PNG"])
def test_other_kinds_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"image cat\.png: neither PNG, JPEG, WebP nor GIF \(it starts with b"):
        make_image(data, "cat.png")


@pytest.mark.parametrize(
    ("media_type", "header"),
    [
        ("image/png", png(300, 200)[:24]),
        ("image/gif", b"GIF89a" + bytes([44, 1, 200, 0])),
        # SOI, an APP0 segment of 4 bytes, a fill byte, SOF2 of 17 bytes: 8 bits, height 200, width 300
        ("image/jpeg", bytes.fromhex("ffd8 ffe0 0004 0102 ff ffc2 0011 08 00c8 012c")),
        ("image/webp", b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + bytes([44, 1, 200, 0])),
        # 14 bits each: 299 | 199 << 14 = 0x0031C12B
        ("image/webp", b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + bytes.fromhex("2bc13100")),
        ("image/webp", b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + bytes([43, 1, 0, 199, 0, 0])),
    ],
)
def test_size_is_read_from_the_header(media_type: str, header: bytes) -> None:
    assert image_size(header, media_type) == (300, 200)
    assert image_size(header[:-6], media_type) in (None, (1, 1))


def test_image_that_unpacks_to_gigabytes_is_refused() -> None:
    bomb = bytearray(png())
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2
    with pytest.raises(InputError) as refused:
        make_image(bytes(bomb), "bomb.png")
    assert str(refused.value) == "image bomb.png: 50000 × 50000 pixels; at most 50 million: make it smaller"


def test_relative_path_starts_in_the_project_folder(sources: ImageSources) -> None:
    image = sources.load("cat.png")
    assert (image.data, image.source) == (png(), "cat.png")
    assert image.sha256 == hashlib.sha256(png()).hexdigest()


def test_image_in_a_listed_folder_is_read(sources: ImageSources, tmp_path: Path) -> None:
    listed = replace(sources, folders=(tmp_path / "elsewhere",))
    assert listed.load(str(tmp_path / "elsewhere" / "cat.png")).data == png()


def test_image_that_is_too_large_is_refused_before_all_of_it_is_read(
    sources: ImageSources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "MAX_BYTES", 2**20)
    with (sources.root / "large.png").open("wb") as file:
        file.write(png())
        file.truncate(2**20 + 1)
    assert refusal(sources, "large.png") == "image large.png: larger than 1 MiB; make it smaller"


def test_missing_file_and_folder_are_named(sources: ImageSources) -> None:
    (sources.root / "folder.png").mkdir()
    for name in ("gone.png", "folder.png"):
        assert refusal(sources, name) == f"image {name}: no such file: {sources.root / name}"


def test_url_of_a_listed_host_is_fetched(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/cat").respond_with_data(png(), content_type="text/plain")
    url = httpserver.url_for("/cat")
    image = of_server(httpserver, tmp_path).load(url)
    assert (image.data, image.media_type, image.source) == (png(), "image/png", url)


def test_url_of_another_host_is_never_asked(httpserver: HTTPServer, tmp_path: Path) -> None:
    url = httpserver.url_for("/cat.png")
    host = f"{httpserver.host}:{httpserver.port}"
    for hosts in ((), (httpserver.host,), (f"{httpserver.host}:1",)):
        said = refusal(ImageSources(tmp_path, hosts=hosts), url)
        assert said == f"image {url}: host '{host}' is not allowed; add it to GGUF_FLOW_IMAGE_HOSTS if you trust it"
    assert httpserver.log == []


@pytest.mark.parametrize(
    "source",
    ["ftp://example.org/a.png", "file:///etc/passwd", "http://", "http://me:secret@example.org/a.png"],
)
def test_url_of_another_kind_is_refused(tmp_path: Path, source: str) -> None:
    said = refusal(ImageSources(tmp_path, hosts=("example.org",)), source)
    assert said == f"image {source!r}: expected http(s)://host/…, without user and password"


def test_host_is_compared_by_name_and_port_whatever_the_case(tmp_path: Path) -> None:
    sources = ImageSources(tmp_path, hosts=("Example.org", "[::1]:8080"))
    for url in ("https://EXAMPLE.org/a", "http://example.org:80/a", "https://example.org:443/", "http://[::1]:8080/"):
        sources.check(url)
    for url in (
        "http://example.org:8080/a",
        "http://example.org.evil.net/",
        "http://good.example.org/",
        "http://[::1]/",
    ):
        with pytest.raises(InputError, match="is not allowed"):
            sources.check(url)


def test_redirect_within_the_listed_hosts_is_followed(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/old").respond_with_response(Response(status=302, headers={"Location": "/new"}))
    httpserver.expect_request("/new").respond_with_data(png())
    assert of_server(httpserver, tmp_path).load(httpserver.url_for("/old")).data == png()


def test_redirect_to_another_host_is_refused(httpserver: HTTPServer, tmp_path: Path) -> None:
    inside = f"http://127.0.0.1:{httpserver.port}/secret"
    httpserver.expect_request("/cat").respond_with_response(Response(status=307, headers={"Location": inside}))
    sources = ImageSources(tmp_path, hosts=(f"localhost:{httpserver.port}",))
    url = f"http://localhost:{httpserver.port}/cat"
    assert f"image {url}: it leads on to host '127.0.0.1:{httpserver.port}' is not allowed" in refusal(sources, url)
    assert [request.path for request, _ in httpserver.log] == ["/cat"]


def test_redirects_in_a_circle_come_to_an_end(httpserver: HTTPServer, tmp_path: Path) -> None:
    httpserver.expect_request("/a").respond_with_response(Response(status=302, headers={"Location": "/a"}))
    assert refusal(of_server(httpserver, tmp_path), httpserver.url_for("/a")).endswith("more than 5 redirects")


def test_answer_that_is_too_large_is_left_in_the_middle(
    httpserver: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "MAX_BYTES", 2**20)
    endless = (b"\x89PNG\r\n\x1a\n" + b"x" * 65536 for _ in range(1000))
    httpserver.expect_request("/a").respond_with_response(Response(endless))
    assert refusal(of_server(httpserver, tmp_path), httpserver.url_for("/a")).endswith(
        "larger than 1 MiB; make it smaller"
    )


def test_page_in_place_of_an_image_and_an_error_of_the_server_are_one_line(
    httpserver: HTTPServer, tmp_path: Path
) -> None:
    httpserver.expect_request("/page.png").respond_with_data("<html>", content_type="image/png")
    httpserver.expect_request("/gone.png").respond_with_data(png(), status=404)
    sources = of_server(httpserver, tmp_path)
    assert "neither PNG, JPEG, WebP nor GIF (it starts with b'<html>')" in refusal(
        sources, httpserver.url_for("/page.png")
    )
    assert refusal(sources, httpserver.url_for("/gone.png")).endswith("the server answers 404")


def test_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    said = refusal(ImageSources(tmp_path, hosts=("127.0.0.1:1",)), "http://127.0.0.1:1/a.png")
    assert said.startswith("image http://127.0.0.1:1/a.png: cannot be fetched: ")


def test_folders_and_hosts_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert (Settings().image_folders, Settings().image_hosts) == ((), ())
    monkeypatch.setenv("GGUF_FLOW_IMAGE_FOLDERS", "/a:/b c")
    monkeypatch.setenv("GGUF_FLOW_IMAGE_HOSTS", "example.org, localhost:8080")
    expected = ImageSources(tmp_path, (Path("/a"), Path("/b c")), ("example.org", "localhost:8080"))
    assert Settings().image_sources == expected


def asked(*pictures: bytes) -> GenerateRequest:
    images = tuple(make_image(data, f"{number}.png") for number, data in enumerate(pictures))
    return GenerateRequest((("user", "What is it?"),), SamplingParams(temperature=0), images=images)


def test_request_with_images_survives_a_journey_as_json() -> None:
    request = asked(png(), GIF)
    assert unpack_request(json.loads(json.dumps(pack_request(request)))) == request


def test_answer_cache_tells_images_apart_by_their_bytes_alone(tmp_path: Path) -> None:
    answers = AnswerCache(tmp_path / "sessions", tmp_path / "cache")
    load = LoadParams(str(write_tiny_gguf(tmp_path / "a.gguf")), n_ctx=512)
    red, blue = png(), png(colour=(0, 0, 255))
    keys = [answers.key(load, asked(*pictures)) for pictures in ([], [red], [blue], [red, blue], [blue, red])]
    assert len(set(keys)) == 5
    renamed = replace(asked(red), images=(make_image(red, "https://example.org/other"),))
    assert answers.key(load, renamed) == keys[1]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    red, blue = make_image(png(), "red.png"), make_image(png(colour=(0, 0, 255)), "blue.png")
    return create(tmp_path / "sessions", images={"question": (red, blue), "again.png": (red,)})


def test_session_keeps_each_image_once_and_its_records_no_bytes(session: Session) -> None:
    red, blue = (hashlib.sha256(data).hexdigest() for data in (png(), png(colour=(0, 0, 255))))
    assert {path.name for path in (session.path / "images").iterdir()} == {f"{red}.png", f"{blue}.png"}
    written = json.loads((session.path / "session.json").read_text())["images"]
    assert written["again.png"] == [{"source": "red.png", "sha256": red, "media_type": "image/png"}]
    assert [image["source"] for image in written["question"]] == ["red.png", "blue.png"]


def test_kept_image_is_the_one_that_was_seen(session: Session) -> None:
    record = load_session(session.path.parent, "session_001")
    image = kept_image(session.path, record.images["question"][1])
    assert image == make_image(png(colour=(0, 0, 255)), "blue.png")


def test_kept_image_that_is_gone_or_another_one_is_said(session: Session) -> None:
    red = session.record.images["again.png"][0]
    (session.path / "images" / f"{red.sha256}.png").write_bytes(GIF)
    with pytest.raises(SessionError, match=r"\.png: damaged: its SHA-256 is not that of its name"):
        kept_image(session.path, red)
    (session.path / "images" / f"{red.sha256}.png").unlink()
    with pytest.raises(SessionError, match=r"\.png: No such file or directory"):
        kept_image(session.path, red)


def test_zip_of_a_session_has_its_images(session: Session, tmp_path: Path) -> None:
    (session.path / "images" / "passwd").symlink_to("/etc/passwd")
    (session.path / "images" / f"{'0' * 64}.png").symlink_to("/etc/passwd")
    export_session(session.path.parent, "session_001", tmp_path / "a.zip")
    (red,) = refs([make_image(png(), "red.png")])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read(f"session_001/images/{red.file_name}") == png()
        assert sum("/images/" in name for name in archive.namelist()) == 2
