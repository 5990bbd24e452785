"""Two texts, word by word."""

import pytest

from llm_core.word_diff import Piece, word_diff

SAME, GONE, NEW = "same", "gone", "new"


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("Ice is cold.", "Ice is cold.", [(SAME, "Ice is cold.")]),
        ("Ice is very cold.", "Ice is cold.", [(SAME, "Ice is"), (GONE, " very"), (SAME, " cold.")]),
        ("Ice is cold.", "Ice is wet.", [(SAME, "Ice is"), (GONE, " cold."), (NEW, " wet.")]),
        ("", "Ice", [(NEW, "Ice")]),
        ("Ice", "", [(GONE, "Ice")]),
        ("", "", []),
        ("Ice  is\ncold", "Ice is cold", [(SAME, "Ice is cold")]),
        ("冰很冷。", "冰不冷。", [(SAME, "冰"), (GONE, "很"), (NEW, "不"), (SAME, "冷。")]),
    ],
)
def test_pieces_in_reading_order(before: str, after: str, pieces: list[tuple[str, str]]) -> None:
    assert word_diff(before, after) == [Piece(kind, text) for kind, text in pieces]  # type: ignore[arg-type]
