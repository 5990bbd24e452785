"""What a person sees while a dataset run goes on: a bar a step in a terminal, plain lines elsewhere. On stderr."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EtaColumn

from tasks.run import Silent

PLAIN_EVERY_S = 5.0
"""Between two lines about one step."""


class _Rate:
    """Items and tokens of a step since it began in this run."""

    def __init__(self, n_items: int, n_done: int) -> None:
        self.n_items, self.n_before = n_items, n_done
        self.n_done, self.n_failed, self.n_tokens = n_done, 0, 0
        self._began, self.shown = time.perf_counter(), 0.0

    def add(self, n_tokens: int, failed: bool) -> None:
        self.n_done += 1
        self.n_tokens += n_tokens
        self.n_failed += failed

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    @property
    def eta_s(self) -> float | None:
        done_now = self.n_done - self.n_before
        return (self.n_items - self.n_done) * self.elapsed_s / done_now if done_now else None

    @property
    def figures(self) -> str:
        failed = f", {self.n_failed} failed" if self.n_failed else ""
        return f"{self.n_tokens / max(self.elapsed_s, 1e-9):.0f} tokens/s{failed}"


class LiveBatchProgress(Silent):
    """One bar a step: items, tokens/s, elapsed and remaining time."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._rich = Progress(*columns, EtaColumn(), TextColumn("{task.fields[figures]}"), console=console)
        self._rows: dict[str, tuple[TaskID, _Rate]] = {}

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._rich.stop()

    def begin_items(self, step: str, n_items: int, n_done: int) -> None:
        row = self._rich.add_task(step, total=n_items, completed=n_done, figures="waiting")
        self._rows[step] = row, _Rate(n_items, n_done)

    def item(self, step: str, n_tokens: int, failed: bool) -> None:
        row, rate = self._rows[step]
        rate.add(n_tokens, failed)
        self._rich.update(row, advance=1, figures=rate.figures)

    def end_items(self, step: str) -> None:
        row, rate = self._rows[step]
        self._rich.update(row, figures=rate.figures if rate.n_done > rate.n_before else "from before")

    def say(self, line: str) -> None:
        self._rich.console.print(line, markup=False, highlight=False, soft_wrap=True)


class PlainBatchProgress(Silent):
    """A line when a step begins and ends, and one every few seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rates: dict[str, _Rate] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def begin_items(self, step: str, n_items: int, n_done: int) -> None:
        self._rates[step] = _Rate(n_items, n_done)
        self.say(f"{step}: {n_items} items" + (f", {n_done} from before" if n_done else ""))

    def item(self, step: str, n_tokens: int, failed: bool) -> None:
        rate = self._rates[step]
        rate.add(n_tokens, failed)
        if time.perf_counter() - rate.shown >= PLAIN_EVERY_S and rate.elapsed_s >= PLAIN_EVERY_S:
            rate.shown = time.perf_counter()
            self.say(f"{step}: {rate.n_done}/{rate.n_items}, {rate.figures}, {rate.eta_s or 0:.0f} s to go")

    def end_items(self, step: str) -> None:
        rate = self._rates[step]
        self.say(f"{step}: done, {rate.n_done} items in {rate.elapsed_s:.1f} s, {rate.figures}")

    def say(self, line: str) -> None:
        with self._lock:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def watcher(console: Console) -> LiveBatchProgress | PlainBatchProgress:
    """The display that suits where stderr goes."""
    return LiveBatchProgress(console) if console.is_terminal else PlainBatchProgress(console)
