"""Images from the folders and hosts that are allowed, and from nowhere else."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_core.errors import InputError
from llm_core.images import Image, make_image

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 20 * 2**20
MAX_REDIRECTS = 5
READ_LIMIT_S = 10.0
"""Between two pieces of an answer."""
FETCH_LIMIT_S = 60.0
"""For all of it, so that no server holds a run by sending a byte now and then."""


@dataclass(frozen=True)
class ImageSources:
    """Where images may come from.

    Args:
        root: the project's folder; relative paths start here, and what lies in it may be read.
        folders: others that may be read.
        hosts: that may be asked, such as `example.org`, or `example.org:8080` where the port is not its scheme's own.
    """

    root: Path
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()

    def check(self, source: str) -> None:
        """Refuse what may not be read, without reading it.

        Raises:
            InputError: one line that names the source and the setting.
        """
        if is_url(source):
            self._allowed_url(source)
        else:
            self._allowed_path(source)

    def load(self, source: str) -> Image:
        """Read the file or fetch the URL.

        Raises:
            InputError: it may not be read, cannot be, is too large, or is no image; one line that names the source.
        """
        return make_image(self._fetch(source) if is_url(source) else self._read(source), source)

    def _allowed_path(self, source: str) -> Path:
        try:
            path = (self.root / Path(source).expanduser()).resolve()
            allowed = [folder.expanduser().resolve() for folder in (self.root, *self.folders)]
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"image {source!r}: no file can be called so: {error}") from None
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise InputError(
                f"image {source}: {path} lies outside the project folder; add its folder to GGUF_FLOW_IMAGE_FOLDERS"
            )
        return path

    def _read(self, source: str) -> bytes:
        path = self._allowed_path(source)
        try:
            if not path.is_file():  # a pipe would be waited for
                raise InputError(f"image {source}: no such file: {path}")
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InputError(f"image {source}: cannot be read: {error.strerror or error}") from None
        if len(data) > MAX_BYTES:
            raise _too_large(source)
        return data

    def _allowed_url(self, source: str, leads_to: "httpx.URL | None" = None) -> "httpx.URL":
        """`source`, or where it leads to."""
        import httpx  # no command that reads no URL waits for it

        try:
            url = leads_to or httpx.URL(source)
        except httpx.InvalidURL as error:
            raise InputError(f"image {source!r}: no URL: {error}") from None
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise InputError(f"image {source!r}: expected http(s)://host/…, without user and password")
        host = url.netloc.decode("ascii")
        if host not in {allowed.lower() for allowed in self.hosts}:
            led = "it leads on to " if leads_to else ""
            raise InputError(
                f"image {source}: {led}host '{host}' is not allowed; add it to GGUF_FLOW_IMAGE_HOSTS if you trust it"
            )
        return url

    def _fetch(self, source: str) -> bytes:
        import httpx

        url = self._allowed_url(source)
        try:
            with httpx.Client(timeout=READ_LIMIT_S, follow_redirects=False) as client:
                return b"".join(self._pieces(client, source, url))
        except httpx.HTTPError as error:
            raise InputError(f"image {source}: cannot be fetched: {error or type(error).__name__}") from None

    def _pieces(self, client: "httpx.Client", source: str, url: "httpx.URL") -> Iterator[bytes]:
        deadline = time.monotonic() + FETCH_LIMIT_S
        for _ in range(MAX_REDIRECTS + 1):
            with client.stream("GET", url, headers={"Accept": "image/*", "Accept-Encoding": "identity"}) as response:
                if response.next_request:
                    url = self._allowed_url(source, response.next_request.url)
                    continue
                if response.status_code != 200:
                    raise InputError(f"image {source}: the server answers {response.status_code}")
                yield from _bounded(response, source, deadline)
                return
        raise InputError(f"image {source}: more than {MAX_REDIRECTS} redirects")


def _bounded(response: "httpx.Response", source: str, deadline: float) -> Iterator[bytes]:
    n_bytes = 0
    for piece in response.iter_bytes():
        n_bytes += len(piece)
        if n_bytes > MAX_BYTES:
            raise _too_large(source)
        if time.monotonic() > deadline:
            raise InputError(f"image {source}: not all there after {FETCH_LIMIT_S:.0f} s")
        yield piece


def _too_large(source: str) -> InputError:
    return InputError(f"image {source}: larger than {MAX_BYTES >> 20} MiB; make it smaller")


def is_url(source: str) -> bool:
    return "://" in source
