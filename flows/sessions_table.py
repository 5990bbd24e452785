"""Sessions for the terminal: the list, and one to read."""

from collections.abc import Iterable, Iterator

from rich.cells import cell_len, set_cell_size

from llm_core.session_records import SessionRecord, StepRecord

COLUMNS = ("session", "pipeline", "status", "when", "took", "tokens/s", "question")
QUESTION_CELLS = 60
"""At least so wide is the last column, however narrow the terminal."""


def sessions_lines(tree: Iterable[tuple[int, SessionRecord]], width: int) -> Iterator[str]:
    """A heading, and a line per session, a rerun indented under its parent with what was changed.

    Written by hand, because rich takes 3 s for a table of 5,000 rows.
    """
    rows = [COLUMNS, *(_row(depth, session) for depth, session in tree)]
    *widths, _ = (max(map(_cells, column)) for column in zip(*rows, strict=True))
    room = max(QUESTION_CELLS, width - sum(widths) - 2 * len(widths))
    for *cells, question in rows:
        shown = question if _cells(question) <= room else set_cell_size(question, room - 1) + "…"
        yield "  ".join((*map(_padded, cells, widths), shown))


def _row(depth: int, session: SessionRecord) -> tuple[str, ...]:
    return (
        "  " * (depth - 1) + "└ " * (depth > 0) + session.id,
        session.pipeline,
        session.status,
        session.created.astimezone().strftime("%Y-%m-%d %H:%M"),
        f"{(session.ended - session.created).total_seconds():.1f} s" if session.ended else "",
        f"{session.tokens_per_s:.1f}" if session.tokens_per_s else "",
        session.came_from if session.from_stage else " ".join(session.question.split()),
    )


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def _padded(text: str, cells: int) -> str:
    return text.ljust(cells) if text.isascii() else set_cell_size(text, cells)


def session_text(session: SessionRecord, steps: list[StepRecord], answer: str | None) -> str:
    """A session to read: question, each step's answer, the final one."""
    parts = [f"{session.id} · {session.pipeline} · {session.status}", f"Question: {session.question}"]
    for step in steps:
        model = f" ({step.model})" if step.model else ""
        parts.append(f"── {step.id}{model}\n{step.text}")
    if session.error:
        parts.append(f"── error\n{session.error}")
    if answer is not None:
        parts.append(f"── answer\n{answer}")
    return "\n\n".join(parts)
