"""An image that a model is asked about: its bytes, and of what kind they are."""

import hashlib
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Any

from llm_core.errors import InputError

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/gif": ".gif"}
"""File name suffix by media type; other kinds are refused."""


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
        InputError: the bytes are of none of the kinds that are taken.
    """
    media_type = _media_type(data)
    if media_type is None:
        raise InputError(f"image {source}: neither PNG, JPEG, WebP nor GIF (it starts with {data[:8]!r}); convert it")
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


def unpack_image(data: dict[str, Any]) -> Image:
    """The image that `pack_image` took apart."""
    return Image(**{**data, "data": b64decode(data["data"])})
