"""The images of a run, kept once each in the session's folder: a rerun sees what was seen then."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from llm_core.atomic_write import write_bytes_whole
from llm_core.errors import SessionError
from llm_core.images import SUFFIXES, Image

FOLDER = "images"
_KEPT_NAME = re.compile(r"[0-9a-f]{64}\.[a-z]{3,4}")


class ImageRef(BaseModel):
    """An image without its bytes."""

    model_config = ConfigDict(frozen=True)

    source: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    media_type: Literal["image/png", "image/jpeg", "image/webp", "image/gif"]

    @property
    def file_name(self) -> str:
        return f"{self.sha256}{SUFFIXES[self.media_type]}"


Images = Mapping[str, tuple[Image, ...]]
"""By what a stage's `images` says: `question`, a path, or a URL."""
ImageRefs = Mapping[str, tuple[ImageRef, ...]]


def refs(images: Iterable[Image]) -> tuple[ImageRef, ...]:
    return tuple(ImageRef.model_validate(image, from_attributes=True) for image in images)


def keep_images(session: Path, images: Iterable[Image]) -> None:
    """Write those that are not there yet into the session's folder.

    Raises:
        OSError: it cannot be written.
    """
    for image, ref in zip(images, refs(images), strict=True):
        path = session / FOLDER / ref.file_name
        if not path.exists():
            write_bytes_whole(path, image.data)


def kept_image(session: Path, ref: ImageRef) -> Image:
    """An image of a session.

    Raises:
        SessionError: its file is gone, or is another one by now.
    """
    path = session / FOLDER / ref.file_name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SessionError(f"{path}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise SessionError(f"{path}: damaged: its SHA-256 is not that of its name")
    return Image(data, ref.media_type, ref.sha256, ref.source)


def kept_images(session: Path, kept: ImageRefs) -> dict[str, tuple[Image, ...]]:
    """All images of a session; as `kept_image`."""
    return {name: tuple(kept_image(session, ref) for ref in refs) for name, refs in kept.items()}


def kept_files(session: Path) -> list[Path]:
    """The files of images in a session's folder; links and what else lies there are none."""
    folder = session / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = sorted(path for path in folder.iterdir() if _KEPT_NAME.fullmatch(path.name))
    return [path for path in found if path.is_file() and not path.is_symlink()]
