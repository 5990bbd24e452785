"""What a user reads when a YAML file is wrong: one line with file, line or key path, and the near name."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError, field_validator

from llm_core.documents import Document, key_path, load_document, near_name
from llm_core.errors import ConfigError


class Cup(Document):
    size: int = Field(gt=0)
    colour: str = "white"

    @field_validator("colour")
    @classmethod
    def _no_beige(cls, value: str) -> str:
        if value == "beige":
            raise ValueError("beige is no colour")
        return value


class Shelf(Document):
    cups: tuple[Cup, ...] = Field(min_length=1)
    spare: Any = None


def load(folder: Path, text: str | bytes) -> Shelf:
    path = folder / "shelf.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_document(path, Shelf)


def test_sound_file_becomes_the_model(tmp_path: Path) -> None:
    assert load(tmp_path, "cups: [{size: 3}, {size: 5, colour: blue}]").cups == (
        Cup(size=3),
        Cup(size=5, colour="blue"),
    )


def test_document_does_not_change_once_it_is_read(tmp_path: Path) -> None:
    shelf = load(tmp_path, "cups: [{size: 3}]")
    with pytest.raises(ValidationError, match="frozen"):
        shelf.cups[0].size = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cups: [{size: 1}", " line 1: YAML syntax: while parsing a flow sequence expected ',' or ']', but got "),
        ("cups:\n  - size: 1: 2", " line 2: YAML syntax: mapping values are not allowed here"),
        ("cups: []\ncups: []", " line 2: YAML syntax: key 'cups' stands twice"),
        ("cups:\n  - {size: 1}\n  - {size: 1, size: 2}", " line 3: YAML syntax: key 'size' stands twice"),
        ("cups: {[size]: 1}", " line 1: YAML syntax: while constructing a mapping found unhashable key"),
        ("cups: !!python/name:os.system", " line 1: YAML syntax: could not determine a constructor for the tag"),
        ("cups: \x07", " YAML syntax: unacceptable character #x0007: special characters are not allowed"),
        ("cups: 2024-13-45", " YAML syntax: month must be in 1..12"),
        ("cups: " + "[" * 1000, " YAML syntax: maximum recursion depth exceeded"),
        (b"cups: \xff", " cannot be read: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_file_that_is_no_yaml_is_refused_in_one_line_with_its_place(
    tmp_path: Path, text: str | bytes, problem: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, text)
    assert str(refusal.value).startswith(f"{tmp_path}/shelf.yaml:{problem}")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a mapping of keys, found nothing"),
        ("- cups", "expected a mapping of keys, found ['cups']"),
        ("cup: []", "unknown key 'cup'; did you mean 'cups'?"),
        ("cups: [{size: 1, colou: red}]", "cups[0]: unknown key 'colou'; did you mean 'colour'?"),
        ("cups: [{size: 1, weight: 2}]", "cups[0]: unknown key 'weight'; known: size, colour"),
        ("cups: [{size: 1, 7: 2}]", "cups[0]: unknown key '7'; known: size, colour"),
        ("cups: [{size: 1}, {colour: red}]", "cups[1].size: this key is required"),
        ("cups: [{size: 1}, {size: [2]}]", "cups[1].size: Input should be a valid integer"),
        ("cups: [{size: 0}]", "cups[0].size: input should be greater than 0, not 0"),
        ("cups: [{size: 1, colour: true}]", "cups[0].colour: input should be a valid string, not True"),
        ("cups: [{size: 1, colour: beige}]", "cups[0].colour: beige is no colour"),
        ("cups: [{size: 0}, {size: 0}, {size: 0}]", "cups[0].size: input should be greater than 0, not 0 (and 2 more)"),
        ("cups: []", "cups: Tuple should have at least 1 item after validation, not 0"),
    ],
)
def test_content_that_does_not_fit_is_refused_with_its_key_path(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, text)
    assert str(refusal.value) == f"{tmp_path}/shelf.yaml: {problem}"


@pytest.mark.parametrize("item", ["3", "red", "null"])
def test_value_in_place_of_a_mapping_is_refused(tmp_path: Path, item: str) -> None:
    with pytest.raises(ConfigError, match=r"shelf\.yaml: cups\[0\]: .*nput should be a valid dictionary"):
        load(tmp_path, f"cups: [{item}]")


def test_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_document(tmp_path / "absent.yaml", Shelf)
    remedy = "no such file; run in the project's folder or set GGUF_FLOW_CONFIG_DIR"
    assert str(refusal.value) == f"{tmp_path}/absent.yaml: {remedy}"


def test_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*Is a directory"):
        load_document(tmp_path, Shelf)


def test_merged_mapping_may_be_written_over(tmp_path: Path) -> None:
    text = "cups:\n  - &blue {size: 1, colour: blue}\n  - &big {<<: *blue, size: 9}\n  - {<<: *big, colour: red}"
    assert load(tmp_path, text).cups == (
        Cup(size=1, colour="blue"),
        Cup(size=9, colour="blue"),
        Cup(size=9, colour="red"),
    )


def test_merge_of_a_merge_that_stands_deeper_is_no_repeated_key(tmp_path: Path) -> None:
    text = "spare: {a: {b: &big {<<: &base {size: 1}, size: 9}}}\ncups: [{<<: *big}]"
    assert load(tmp_path, text).cups == (Cup(size=9),)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("lama3", ["mistral", "llama3"], "; did you mean 'llama3'?"),
        ("zzz", ["mistral", "llama3"], "; known: mistral, llama3"),
        ("zzz", [], ""),
        (3, ["a"], "; known: a"),
    ],
)
def test_near_name_is_the_closest_or_else_all_of_them(name: object, known: list[str], hint: str) -> None:
    assert near_name(name, known) == hint


@pytest.mark.parametrize(
    ("location", "path"),
    [(("stages", 1, "model"), "stages[1].model"), ((0, "a"), "[0].a"), (("a", "b", 2, 3), "a.b[2][3]"), ((), "")],
)
def test_key_path_is_written_as_in_code(location: tuple[int | str, ...], path: str) -> None:
    assert key_path(location) == path
