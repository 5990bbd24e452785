"""Questions in a file: JSONL or CSV with a `question` column; all other columns pass through.

Where a pipeline looks at the question's images, they stand in the column `images` or `image`.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llm_core.documents import near_name
from llm_core.errors import InputError
from llm_core.image_sources import is_url

QUESTION = "question"
IMAGES = ("images", "image")
RESULT = "result"
"""The column that a result is written to, so no dataset may have it."""


@dataclass(frozen=True)
class Item:
    """One question; `number` counts from 1 in the order of the file."""

    number: int
    question: str
    columns: dict[str, Any]
    """The row as it was read, the question included."""


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """All rows of a dataset, or the first `limit`.

    Raises:
        InputError: the file cannot be read, or a row is not what it should be; the message names the line.
    """
    readers = {".jsonl": _json_rows, ".ndjson": _json_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: expected a .jsonl or .csv file with a '{QUESTION}' column")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = readers[path.suffix.lower()](path, file)
            items = [_item(path, number, line, row) for number, (line, row) in enumerate(islice(rows, limit), 1)]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not items:
        raise InputError(f"{path}: holds no question")
    return items


def row_images(item: Item, dataset: Path) -> tuple[str, ...]:
    """The images of a row: URLs, and paths, which are relative to the dataset's folder.

    Raises:
        InputError: the column holds something else.
    """
    written = next((item.columns[name] for name in IMAGES if item.columns.get(name)), ())
    sources = [written] if isinstance(written, str) else written
    if not isinstance(sources, list | tuple) or not all(isinstance(source, str) and source for source in sources):
        raise InputError(
            f"{dataset}: item {item.number}: its images are {written!r}, not a path, a URL, or a list of them"
        )
    folder = dataset.absolute().parent
    return tuple(source if is_url(source) else str(folder / source) for source in sources)


def _json_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}: line {line}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f'{path}: line {line}: expected an object, such as {{"{QUESTION}": "…"}}')
        yield line, row


def _csv_rows(path: Path, file: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file, strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                expected = len(reader.fieldnames or ())
                raise InputError(f"{path}: line {reader.line_num}: not {expected} columns, as the header has")
            yield reader.line_num, dict(row)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.reader.line_num}: {error}") from None


def _item(path: Path, number: int, line: int, row: dict[str, Any]) -> Item:
    where = f"{path}: line {line}"
    if QUESTION not in row:
        raise InputError(f"{where}: no '{QUESTION}' column{near_name(QUESTION, row)}")
    if RESULT in row:
        raise InputError(f"{where}: the column '{RESULT}' is where results go; rename it")
    if not isinstance(row[QUESTION], str):
        raise InputError(f"{where}: '{QUESTION}' is {row[QUESTION]!r}, not a text")
    return Item(number, row[QUESTION], row)
