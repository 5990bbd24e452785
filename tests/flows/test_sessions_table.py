"""The list of sessions as it stands in a terminal."""

from datetime import UTC, datetime, timedelta
from typing import Any

from flows.sessions_table import sessions_lines
from llm_core.session_records import SessionRecord

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).astimezone()


def session(number: int, **more: Any) -> SessionRecord:
    fields = {
        "id": f"session_{number:03d}",
        "status": "completed",
        "pipeline": "base",
        "question": "Why\nis the sky blue?",
        "execution_mode": "auto",
        "created": NOON,
    }
    return SessionRecord.model_validate(fields | more)


def test_rerun_is_indented_and_says_what_was_changed() -> None:
    first = session(1, ended=NOON + timedelta(seconds=2.5), tokens_per_s=31.26)
    second = session(2, parent="session_001", from_stage="draft", changed=["draft.seed=1"], status="running")
    assert list(sessions_lines([(0, first), (1, second)], width=200)) == [
        "session        pipeline  status     when              took   tokens/s  question",
        f"session_001    base      completed  {NOON:%Y-%m-%d %H:%M}  2.5 s  31.3      Why is the sky blue?",
        f"└ session_002  base      running    {NOON:%Y-%m-%d %H:%M}                   from draft, draft.seed=1",
    ]


def test_long_question_is_cut_where_the_terminal_ends_but_leaves_something_to_read() -> None:
    long = session(1, question="word " * 100)
    cells = [len(list(sessions_lines([(0, long)], width))[1]) for width in (150, 20)]
    assert cells[0] == 150
    assert list(sessions_lines([(0, long)], 20))[1].endswith("word word word…")


def test_wide_characters_take_two_cells() -> None:
    lines = list(sessions_lines([(0, session(1, pipeline="天气")), (0, session(2, pipeline="ab"))], 200))
    assert "天气      completed" in lines[1]
    assert "ab        completed" in lines[2]
