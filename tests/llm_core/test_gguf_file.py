"""What a GGUF file says of itself, and that no damaged one does harm."""

import os
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_core.errors import ModelFileError
from llm_core.gguf_file import GgufFile, read_gguf
from tests.llm_core.tiny_gguf import PADDING, TENSOR_BYTES, write_tiny_gguf

any_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
"""Examples may share a folder: each writes a file of its own name."""


def facts(model: GgufFile) -> tuple[Any, ...]:
    return (model.architecture, model.context_length, model.n_layers, model.quantization, model.tensor_bytes)


def test_real_model_says_what_it_is(smollm: Path) -> None:
    model = read_gguf(smollm)
    assert facts(model) == ("llama", 8192, 30, "Q4_1", 96_576_768)
    assert len(model.tensors) == 272
    assert model.size_bytes == 98_362_432
    assert model.of_architecture("attention.head_count_kv") == 3


def test_tensor_sizes_are_those_that_the_gguf_package_reads(smollm: Path) -> None:
    reader = gguf.GGUFReader(smollm)
    assert {t.name: t.nbytes for t in read_gguf(smollm).tensors} == {t.name: int(t.n_bytes) for t in reader.tensors}


def test_long_array_is_skipped_and_what_follows_it_is_read(tmp_path: Path) -> None:
    words = [f"word {n}" for n in range(5000)]
    path = write_tiny_gguf(tmp_path / "a.gguf", words=words, numbers=list(range(5000)), few=[3, 1, 2], after="here")
    metadata = read_gguf(path).metadata
    assert (metadata["words"], metadata["numbers"], metadata["few"]) == (None, None, [3, 1, 2])
    assert metadata["after"] == "here"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"llama__context_length": None}, ("llama", None, None, None, TENSOR_BYTES)),
        ({"llama__block_count": 1, "general__file_type": 15}, ("llama", 512, 1, "Q4_K_M", TENSOR_BYTES)),
        ({"general__file_type": 9999}, ("llama", 512, None, None, TENSOR_BYTES)),
        ({"general__file_type": [1], "llama__block_count": [1]}, ("llama", 512, None, None, TENSOR_BYTES)),
        ({"llama__context_length": "much"}, ("llama", None, None, None, TENSOR_BYTES)),
        ({"llama__context_length": 0}, ("llama", None, None, None, TENSOR_BYTES)),
    ],
)
def test_what_a_file_does_not_say_or_says_wrongly_is_unknown(
    tmp_path: Path, metadata: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert facts(read_gguf(write_tiny_gguf(tmp_path / "a.gguf", **metadata))) == expected


def test_parts_of_a_split_model_are_taken_together(tmp_path: Path) -> None:
    parts = [write_tiny_gguf(tmp_path / f"m-{n:05}-of-00003.gguf", split__count=3) for n in (1, 2, 3)]
    model = read_gguf(parts[0])
    assert len(model.tensors) == 6
    assert model.tensor_bytes == 3 * TENSOR_BYTES
    assert model.size_bytes == sum(part.stat().st_size for part in parts)


def test_split_model_is_named_by_its_first_part(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m-00002-of-00003.gguf", split__count=3)
    with pytest.raises(ModelFileError, match="part 2 of a split model; name part 1 instead"):
        read_gguf(path)


def test_split_model_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m-00001-of-00002.gguf", split__count=2)
    with pytest.raises(ModelFileError, match=r"m-00002-of-00002\.gguf: "):
        read_gguf(path)


def test_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "a.gguf", llama__context_length=64)
    os.utime(path, ns=(1, 1))
    assert read_gguf(path).context_length == 64
    write_tiny_gguf(path, llama__context_length=128)
    os.utime(path, ns=(2, 2))
    assert read_gguf(path).context_length == 128


def header(*, version: int = 3, tensors: int = 0, keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack(f"<QcI{len(dims)}QIQ", 1, b"t", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("kind", "packed", "value"),
    [
        (0, b"\xff", 255),
        (1, b"\xff", -1),
        (2, b"\xfe\xff", 65534),
        (3, b"\xfe\xff", -2),
        (4, b"\xfd\xff\xff\xff", 4294967293),
        (5, b"\xfd\xff\xff\xff", -3),
        (6, b"\x00\x00\xc0\x3f", 1.5),
        (7, b"\x01", True),
        (8, b"\x02" + bytes(7) + "é".encode(), "é"),
        (9, b"\x03\x00\x00\x00" + b"\x02" + bytes(7) + b"\x01\x00\xff\xff", [1, -1]),
        (10, b"\xff" * 8, 18446744073709551615),
        (11, b"\xff" * 8, -1),
        (12, b"\x00\x00\x00\x00\x00\x00\xf8\x3f", 1.5),
    ],
)
@pytest.mark.parametrize("version", [2, 3])
def test_every_kind_of_value_is_read(tmp_path: Path, version: int, kind: int, packed: bytes, value: Any) -> None:
    after = key(b"after", 0, b"\x07")
    content = header(version=version, keys=2, rest=key(b"k", kind, packed) + after)
    (tmp_path / "a.gguf").write_bytes(content + bytes(-len(content) % 32))
    assert read_gguf(tmp_path / "a.gguf").metadata == {"k": value, "after": 7}


MANY = 2**63
STRING, ARRAY = 8, 9


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (header(version=1), "version 1 of the format is not known"),
        (header(version=0x03000000), "version 50331648 of the format is not known"),  # a big-endian file
        (header(tensors=MANY), "its header is cut off"),
        (header(keys=MANY), "its header is cut off"),
        (header(keys=1, rest=struct.pack("<Q", MANY) + b"key"), "its header is cut off"),
        (header(keys=1, rest=key(b"k", 99, b"")), "unknown value type 99"),
        (header(keys=1, rest=key(b"k", STRING, struct.pack("<Q", MANY))), "its header is cut off"),
        (header(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", 4, MANY))), "its header is cut off"),
        (header(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", STRING, MANY))), "its header is cut off"),
        (header(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 5000))), "an array of 5000 values of type 9"),
        (header(keys=1, rest=key(b"k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 5000)), "recursion"),
        (header(tensors=1, rest=tensor([1, 1, 1, 1, 1])), "a tensor of 5 dimensions"),
        (header(tensors=1, rest=tensor([4], kind=77)), "77 is not a valid GGMLQuantizationType"),
        (header(tensors=1, rest=tensor([4])), "(16 bytes are missing)"),
        (header(tensors=1, rest=tensor([MANY, MANY, MANY, MANY])), "bytes are missing)"),
        (header(tensors=1, rest=tensor([4], offset=MANY)), "bytes are missing)"),
    ],
)
def test_damaged_header_is_refused_whatever_it_counts(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content + bytes(-len(content) % 32))
    with pytest.raises(ModelFileError) as refusal:
        read_gguf(tmp_path / "a.gguf")
    assert str(refusal.value).startswith(f"{tmp_path}/a.gguf: ")
    assert problem in str(refusal.value)


@pytest.mark.parametrize("alignment", ["wide", 0.5, float("inf"), [1, 2]])
def test_alignment_that_is_no_number_is_refused(tmp_path: Path, alignment: Any) -> None:
    with pytest.raises(ModelFileError, match="damaged GGUF file"):
        read_gguf(write_tiny_gguf(tmp_path / "a.gguf", general__alignment=alignment))


def test_count_of_parts_that_the_name_denies_is_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "m-00001-of-00002.gguf", split__count=2**40)
    with pytest.raises(ModelFileError, match="one of 1099511627776 parts, its name one of 2"):
        read_gguf(path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with every kind of value in its header."""
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    metadata = {"general__alignment": 32, "split__count": 1, "words": ["a", "b"], "share": 0.5, "general__file_type": 7}
    return write_tiny_gguf(path, **metadata).read_bytes()


@any_folder
@given(data=st.data())
def test_file_cut_anywhere_is_refused(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(sound) - PADDING - 1))
    path = tmp_path / f"cut-{length}.gguf"
    path.write_bytes(sound[:length])
    with pytest.raises(ModelFileError, match=r"truncated|empty|not a GGUF file"):
        read_gguf(path)


@any_folder
@given(data=st.data())
def test_file_with_wrong_bytes_is_read_or_refused_and_nothing_else(
    tmp_path: Path, sound: bytes, data: st.DataObject
) -> None:
    damaged = bytearray(sound)
    places = st.tuples(
        st.integers(4, len(sound) - 1), st.sampled_from([0, 1, 8, 9, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
    )
    for at, byte in data.draw(st.lists(places, min_size=1, max_size=8)):
        damaged[at] = byte
    path = tmp_path / f"{hash(bytes(damaged))}-00001-of-00001.gguf"
    path.write_bytes(damaged)
    try:
        model = read_gguf(path)
    except ModelFileError:
        return
    assert all(0 <= tensor.nbytes <= len(damaged) for tensor in model.tensors)
    assert all(fact is None or isinstance(fact, str | int) for fact in facts(model))
