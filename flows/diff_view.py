"""What differs between two sessions, for the terminal and as Markdown."""

import re
from collections.abc import Iterable, Iterator

from rich.text import Text

from llm_core.session_diff import Change, SessionDiff, StepDiff
from llm_core.word_diff import Piece, word_diff

_STYLES = {"same": "", "gone": "red strike", "new": "green"}
_MARKS = {"same": ("", ""), "gone": ("[-", "-]"), "new": ("{+", "+}")}
"""As `git diff --word-diff` has them, where there is no colour."""
_MARKDOWN = {"same": "", "gone": "~~", "new": "**"}
_SPECIAL = re.compile(r"([\\`*_~#<>|\[\]])")
_NOT_THERE = "(not set)"


def diff_text(diff: SessionDiff, *, colour: bool) -> Text:
    """For the terminal: what was set otherwise, then every step whose answer is another."""
    lines = [Text(f"{diff.before.id} → {diff.after.id}", "bold")]
    lines += [Text(f"{change.key}: ").append_text(_words(_of_change(change), colour)) for change in diff.changes]
    for step in diff.steps:
        if not step.is_same:
            lines += [Text(), Text(f"── {_title(step)}", "bold"), _words(step.pieces, colour)]
    lines += [Text(), Text(_same(diff))]
    return Text("\n").join(lines)


def diff_markdown(diff: SessionDiff) -> str:
    """For the Prefect UI."""
    parts = [f"# {diff.before.id} → {diff.after.id}"]
    if diff.changes:
        parts.append("\n".join(f"- `{change.key}`: {_markdown(_of_change(change))}" for change in diff.changes))
    for step in diff.steps:
        if not step.is_same:
            parts += [f"## {_title(step)}", _markdown(step.pieces)]
    return "\n\n".join([*parts, _same(diff)])


def _same(diff: SessionDiff) -> str:
    same = [step.after for step in diff.steps if step.after and step.is_same]
    return f"The same answer: {', '.join(same)}" if same else "No answer is the same."


def _title(step: StepDiff) -> str:
    if step.before is None or step.after is None:
        return f"{step.after or step.before}: only in the {'second' if step.after else 'first'}"
    return step.after if step.before == step.after else f"{step.before} → {step.after}"


def _of_change(change: Change) -> list[Piece]:
    if isinstance(change.before, str) and isinstance(change.after, str):
        return word_diff(change.before, change.after)
    before = _NOT_THERE if change.before is None else str(change.before)
    after = _NOT_THERE if change.after is None else str(change.after)
    return [Piece("gone", before), Piece("new", f" {after}")]


def _words(pieces: Iterable[Piece], colour: bool) -> Text:
    text = Text()
    for piece in pieces:
        opening, closing = ("", "") if colour else _MARKS[piece.kind]
        space, words, end = _without_space(piece.text)
        text.append(space).append(f"{opening}{words}{closing}" if words else "", _STYLES[piece.kind]).append(end)
    return text


def _markdown(pieces: Iterable[Piece]) -> str:
    return "".join(part for piece in pieces for part in _emphasised(piece))


def _emphasised(piece: Piece) -> Iterator[str]:
    """Line by line, because emphasis ends with its paragraph; spaces stand outside of it."""
    mark = _MARKDOWN[piece.kind]
    for line in piece.text.splitlines(keepends=True):
        space, words, end = _without_space(line)
        escaped = _SPECIAL.sub(r"\\\1", words)
        yield f"{space}{mark}{escaped}{mark}{end}" if words else line


def _without_space(text: str) -> tuple[str, str, str]:
    words = text.strip()
    start = text.index(words) if words else len(text)
    return text[:start], words, text[start + len(words) :]
