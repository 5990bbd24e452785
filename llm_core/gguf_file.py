"""What a GGUF file says of itself, read from its header alone.

The `gguf` package's reader takes 1.9 s for a 49,000-token vocabulary and can loop for ever on a damaged count, so the
header is walked here with every read bounded by the file's size (about 50 ms). Layout: ggml's docs/gguf.md.
"""

import mmap
import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from llm_core.errors import ModelFileError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_KEPT_ARRAY_LENGTH = 4096
"""Longer arrays (vocabularies) are skipped; per-layer arrays are shorter."""
_MAX_DIMS = 4  # GGML_MAX_DIMS in ggml.h
_SPLIT_NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class Tensor:
    name: str
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file, all its split parts taken together. Sizes in bytes; unknown is `None`."""

    path: Path
    size_bytes: int
    metadata: dict[str, Any]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def of_architecture(self, key: str) -> Any:
        """The value of `<architecture>.<key>`, such as `context_length`; `None` when the file does not say."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @property
    def context_length(self) -> int | None:
        """Tokens of context the model was trained for."""
        return self._count("context_length")

    @property
    def n_layers(self) -> int | None:
        return self._count("block_count")

    def _count(self, key: str) -> int | None:
        value = self.of_architecture(key)
        return value if isinstance(value, int) and value > 0 else None

    @property
    def quantization(self) -> str | None:
        """Such as `Q4_K_M`, from `general.file_type`."""
        try:
            return str(LlamaFileType(self.metadata["general.file_type"]).name).removeprefix("MOSTLY_")
        except (KeyError, ValueError):
            return None

    @property
    def chat_template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template")

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class _Cursor:
    """A position in the mapped file; every read is checked against the file's end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def skip(self, nbytes: int) -> int:
        start = self.at
        if nbytes < 0 or start + nbytes > len(self.data):
            raise EOFError
        self.at = start + nbytes
        return start

    def scalar(self, layout: str) -> Any:
        return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))[0]

    def text(self) -> str:
        length = self.scalar("<Q")
        start = self.skip(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        raise ValueError(f"unknown value type {kind}")

    def _array(self) -> list[Any] | None:
        kind, length = self.scalar("<I"), self.scalar("<Q")
        if length <= _KEPT_ARRAY_LENGTH:
            return [self.value(kind) for _ in range(length)]
        if kind in _SCALARS:
            self.skip(length * struct.calcsize(_SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(length):
                self.skip(self.scalar("<Q"))
        else:
            raise ValueError(f"an array of {length} values of type {kind}")
        return None


def read_gguf(path: Path) -> GgufFile:
    """Read the header of `path` and of the further parts of a split model; cached by path, size and mtime.

    Raises:
        ModelFileError: missing, empty, truncated, damaged, or not a GGUF file.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise ModelFileError(f"{path}: the file is missing") from None
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ModelFileError(f"{str(path)!r}: {error}") from None
    return _read_cached(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_cached(path: Path, size: int, mtime_ns: int) -> GgufFile:
    part = _read_part(path)
    parts = [part] + [_read_part(other) for other in _further_parts(path, part.metadata.get("split.count"))]
    return GgufFile(
        path=path,
        size_bytes=sum(p.size_bytes for p in parts),
        metadata=part.metadata,
        tensors=tuple(tensor for p in parts for tensor in p.tensors),
    )


def _further_parts(path: Path, count: Any) -> list[Path]:
    """Parts 2 to `count` of a model split as `name-00001-of-00003.gguf`."""
    match = _SPLIT_NAME.search(path.name)
    if not isinstance(count, int) or count <= 1 or not match:
        return []
    if count != int(match[2]):
        raise ModelFileError(f"{path}: the file says it is one of {count} parts, its name one of {int(match[2])}")
    if int(match[1]) != 1:
        raise ModelFileError(f"{path}: part {int(match[1])} of a split model; name part 1 instead")
    stem = path.name[: match.start()]
    return [path.with_name(f"{stem}-{number:05}-of-{match[2]}.gguf") for number in range(2, count + 1)]


def _read_part(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if not magic:
                raise ModelFileError(f"{path}: the file is empty; fetch it again")
            if magic != b"GGUF":
                raise ModelFileError(f"{path}: not a GGUF file (it starts with {magic!r})")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, _Cursor(data), len(data))
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None
    except EOFError:
        raise ModelFileError(
            f"{path}: truncated or damaged GGUF file (its header is cut off); fetch it again"
        ) from None
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError, struct.error) as error:
        raise ModelFileError(f"{path}: damaged GGUF file ({error}); fetch it again") from None


def _parse(path: Path, cursor: _Cursor, size: int) -> GgufFile:
    cursor.skip(4)
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format is not known")
    n_tensors, n_keys = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata = {}
    for _ in range(n_keys):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("<I"))
    tensors, data_end = [], 0
    for _ in range(n_tensors):
        name = cursor.text()
        n_dims = cursor.scalar("<I")
        if n_dims > _MAX_DIMS:
            raise ValueError(f"a tensor of {n_dims} dimensions")
        n_elements = prod(cursor.scalar("<Q") for _ in range(n_dims))
        block_length, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(cursor.scalar("<I"))]
        tensor = Tensor(name, n_elements // block_length * block_bytes)
        data_end = max(data_end, cursor.scalar("<Q") + tensor.nbytes)
        tensors.append(tensor)
    alignment = int(metadata.get("general.alignment") or 32)
    missing = -(-cursor.at // alignment) * alignment + data_end - size
    if missing > 0:
        raise ModelFileError(f"{path}: truncated GGUF file ({missing:,} bytes are missing); fetch it again")
    return GgufFile(path, size, metadata, tuple(tensors))
