"""What a person sees while a run goes on: a live table in a terminal, plain lines elsewhere. All on stderr."""

import sys
import threading
import time
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from llm_core.session_records import StepRecord
from tasks.run import Silent

PLAIN_EVERY_S = 5.0
"""Between two lines about one step."""


class LiveProgress(Silent):
    """One row a step: spinner, tokens so far, tokens/s."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn())
        self._rich = RichProgress(*columns, TextColumn("{task.fields[figures]}"), console=console)
        self._rows: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._rich.stop()

    def begin(self, step: str, model: str) -> None:
        if step in self._rows:  # a retry
            self._rich.remove_task(self._rows[step][0])
        self._rows[step] = self._rich.add_task(step, total=1, figures="waiting"), 0.0

    def token(self, step: str, n_tokens: int) -> None:
        row, first = self._rows[step]
        now = time.perf_counter()
        if not first:
            self._rows[step] = row, now
        rate = f", {(n_tokens - 1) / (now - first):.0f} tokens/s" if first else ""
        self._rich.update(row, figures=f"{n_tokens} tokens{rate}")

    def say(self, line: str) -> None:
        self._rich.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def end(self, step: str, record: StepRecord) -> None:
        self._rich.update(self._rows[step][0], completed=1, figures=_figures(record))

    def approve(self, stage: str, text: str) -> str | None:
        if not sys.stdin.isatty():
            return None
        self._rich.stop()
        try:
            return _ask_person(self._rich.console, stage, text)
        finally:
            self._rich.start()


class PlainProgress(Silent):
    """A line when a step begins and ends, and one every few seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def begin(self, step: str, model: str) -> None:
        self._line(step, f"asks {model}")

    def token(self, step: str, n_tokens: int) -> None:
        if time.perf_counter() - self._shown.get(step, 0.0) >= PLAIN_EVERY_S:
            self._line(step, f"{n_tokens} tokens")

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def end(self, step: str, record: StepRecord) -> None:
        self._line(step, f"done, {_figures(record)}")

    def _line(self, step: str, text: str) -> None:
        with self._lock:
            self._shown[step] = time.perf_counter()
            self._console.print(f"{step}: {text}", markup=False, highlight=False, soft_wrap=True)


def _ask_person(console: Console, stage: str, text: str) -> str:
    """Show the answer until it is approved; the editor is the one that $EDITOR names.

    Raises:
        KeyboardInterrupt: the person refused it.
    """
    while True:
        console.rule(f"{stage} answered")
        console.print(text, markup=False, highlight=False)
        console.rule()
        choice = console.input("Enter: go on with it, e: edit it, q: end the run > ").strip().lower()
        if choice == "":
            return text
        if choice == "q":
            raise KeyboardInterrupt
        if choice == "e":
            text = (click.edit(text, extension=".md") or text).rstrip("\n")


def _figures(record: StepRecord) -> str:
    if record.reused_from:
        return f"reused from {record.reused_from}"
    load = f", loaded in {record.load_s:.1f} s" if record.load_s else ""
    if record.completion_tokens is None:  # a remote provider need not tell
        return f"{len(record.text)} characters"
    return f"{record.completion_tokens} tokens, {record.tokens_per_s or 0:.0f} tokens/s{load}"


def watcher(console: Console) -> LiveProgress | PlainProgress:
    """The display that suits where stderr goes."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)
