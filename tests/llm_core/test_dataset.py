"""Questions in files, and what a user gets wrong in them."""

from pathlib import Path

import pytest

from llm_core.dataset import Item, read_items, row_images
from llm_core.errors import InputError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_keeps_every_column_with_its_type(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", '{"question": "Why?", "n": 3, "tags": ["a"]}\n\n{"question": "Wie?"}\n')
    assert read_items(path) == [
        Item(1, "Why?", {"question": "Why?", "n": 3, "tags": ["a"]}),
        Item(2, "Wie?", {"question": "Wie?"}),
    ]


def test_csv_with_a_byte_order_mark_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = write(tmp_path, "q.csv", '\ufeffid,question\r\n7,"Why,\nand how?"\r\n8,Ünd?\r\n')
    assert [(item.question, item.columns["id"]) for item in read_items(path)] == [
        ("Why,\nand how?", "7"),
        ("Ünd?", "8"),
    ]


def test_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "q.jsonl", '{"question": "a"}\n{"question": "b"}\nnot json\n')
    assert [item.number for item in read_items(path, 2)] == [1, 2]


def test_empty_question_is_left_to_the_run_which_gives_it_an_error_row(tmp_path: Path) -> None:
    assert read_items(write(tmp_path, "q.jsonl", '{"question": ""}\n'))[0].question == ""


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("q.jsonl", '{"question": "a"}\n{"question"\n', "q.jsonl: line 2: not JSON"),
        ("q.jsonl", '["a"]\n', "q.jsonl: line 1: expected an object"),
        ("q.jsonl", '{"quesiton": "a"}\n', "line 1: no 'question' column; did you mean 'quesiton'?"),
        ("q.jsonl", '{"question": 3}\n', "line 1: 'question' is 3, not a text"),
        ("q.jsonl", '{"question": "a", "result": 1}\n', "line 1: the column 'result' is where results go; rename it"),
        ("q.jsonl", "", "holds no question"),
        ("q.jsonl", b'{"question": "\xff"}\n', "is not UTF-8 text (invalid start byte at byte 14)"),
        ("q.csv", "id\n1\n", "line 2: no 'question' column"),
        ("q.csv", "id,question\n1\n", "line 2: not 2 columns, as the header has"),
        ("q.csv", "id,question\n1,a,b\n", "line 2: not 2 columns"),
        ("q.csv", 'id,question\n1,"a\n', "line 2: unexpected end of data"),
        ("q.csv", "id,question\n", "holds no question"),
        ("q.txt", "a\n", "expected a .jsonl or .csv file with a 'question' column"),
    ],
)
def test_wrong_file_is_one_line_with_its_place(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    with pytest.raises(InputError) as refusal:
        read_items(write(tmp_path, name, content))
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "problem"), [("none.jsonl", "No such file"), ("folder.csv", "Is a directory")])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=problem):
        read_items(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, ()),
        ({"image": ""}, ()),
        ({"image": None}, ()),
        ({"image": "a b.png"}, ("/data/a b.png",)),
        (
            {"images": ["x/a.png", "/b.png", "https://example.org/c.png"]},
            ("/data/x/a.png", "/b.png", "https://example.org/c.png"),
        ),
    ],
)
def test_images_of_a_row_are_urls_and_paths_beside_the_dataset(
    columns: dict[str, object], expected: tuple[str, ...]
) -> None:
    assert row_images(Item(1, "What?", columns), Path("/data/questions.jsonl")) == expected


@pytest.mark.parametrize("written", [7, {"url": "a.png"}, ["a.png", None], [""]])
def test_images_that_are_no_paths_are_refused_with_their_row(written: object) -> None:
    with pytest.raises(InputError, match=r"/q\.jsonl: item 3: its images are .*, not a path, a URL, or a list of them"):
        row_images(Item(3, "What?", {"image": written}), Path("/q.jsonl"))
