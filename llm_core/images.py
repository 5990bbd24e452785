"""An image that a model is asked about: its bytes, and of what kind they are."""

import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Any

from llm_core.errors import InputError
from llm_core.image_size import image_size

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif"}
"""File name suffix by media type; other kinds are refused."""


MAX_PIXELS = 50_000_000


@dataclass(frozen=True)
class Image:
    """One image, whole in memory."""

    data: bytes = field(repr=False)
    media_type: str
    sha256: str
    source: str
    """Where it came from, as it was given: a path or a URL."""


def make_image(data: bytes, source: str) -> Image:
    """The image that `data` is.

    Raises:
        InputError: the bytes are of none of the kinds that are taken, or would unpack to too many pixels.
    """
    media_type = _media_type(data)
    if media_type is None:
        raise InputError(f"image {source}: neither PNG, JPEG, WebP nor GIF (it starts with {data[:8]!r}); convert it")
    width, height = image_size(data, media_type) or (0, 0)
    if width * height > MAX_PIXELS:
        raise InputError(
            f"image {source}: {width} × {height} pixels; at most {MAX_PIXELS // 10**6} million: make it smaller"
        )
    return Image(data, media_type, hashlib.sha256(data).hexdigest(), source)


def _media_type(data: bytes) -> str | None:
    """By the first bytes; a name or a header that says otherwise says nothing."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def pack_image(image: Image) -> dict[str, str]:
    """For a journey as JSON."""
    text = b64encode(image.data).decode("ascii")
    return {"data": text, "media_type": image.media_type, "sha256": image.sha256, "source": image.source}


def data_url(image: Image) -> str:
    """The image within a URL (RFC 2397), as APIs take it."""
    return f"data:{image.media_type};base64,{b64encode(image.data).decode('ascii')}"


def unpack_image(data: dict[str, Any]) -> Image:
    """The image that `pack_image` took apart."""
    return Image(**{**data, "data": b64decode(data["data"])})
