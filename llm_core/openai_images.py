"""Image parts of OpenAI's chat requests: `data:` URLs, and URLs of hosts that are allowed. No files of this machine."""

import binascii
from base64 import b64decode
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llm_core.errors import InputError
from llm_core.image_sources import MAX_BYTES, ImageSources, is_url
from llm_core.images import Image, make_image


class ImageUrl(BaseModel):
    model_config = ConfigDict(extra="forbid")
    url: str
    detail: Literal["auto"] = "auto"


class ImagePart(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["image_url"]
    image_url: ImageUrl

    def load(self, sources: ImageSources) -> Image:
        """The image.

        Raises:
            InputError: it may not be fetched, or is none.
        """
        url = self.image_url.url
        if is_url(url):
            return sources.load(url)
        head, _, text = url.partition(",")
        if not (head.startswith("data:") and head.endswith(";base64")):
            raise InputError(f"image {url[:60]!r}: expected data:…;base64,… or http(s)://…")
        try:
            data = b64decode(text, validate=True)
        except binascii.Error as error:
            raise InputError(f"image {head},…: not base64: {error}") from None
        if len(data) > MAX_BYTES:
            raise InputError(f"image {head},…: larger than {MAX_BYTES >> 20} MiB; make it smaller")
        return make_image(data, f"{head},…")
