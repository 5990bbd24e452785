"""Models and sessions as tables for the terminal."""

import time
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table

from llm_core.errors import SessionError
from llm_core.memory import Measured, MemoryEstimates
from llm_core.registry import ModelRegistry
from llm_core.session_records import SessionRecord, StepRecord


def human_bytes(n: int) -> str:
    """`98362432` → `93.8 MiB`."""
    size, units = float(n), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def models_table(registry: ModelRegistry, estimates: MemoryEstimates) -> Table:
    """`memory`: the last real load of the file, predicted and measured peak."""
    columns = ("name", "file", "state", "size", "quantization", "context", "memory")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for name, model in registry.available.items():
        gguf = model.gguf
        context = str(gguf.context_length or "?")
        file = escape(model.entry.file or "")
        memory = _memory(estimates.last_measured(model.path))
        size, quantization = human_bytes(gguf.size_bytes), gguf.quantization or "?"
        table.add_row(escape(name), file, "ready", size, quantization, context, memory)
    for name, missing in registry.missing.items():
        table.add_row(escape(name), escape(missing.entry.file or ""), escape(missing.reason), style="red")
    for name in registry.remote:
        table.add_row(escape(name), "", "remote")
    return table


def _memory(measured: Measured | None) -> str:
    if measured is None:
        return ""
    ram = f"{human_bytes(measured.predicted_ram_bytes)} predicted, {human_bytes(measured.peak_ram_bytes)} measured"
    if not measured.peak_vram_bytes:
        return ram
    vram = f"{human_bytes(measured.predicted_vram_bytes)} predicted, {human_bytes(measured.peak_vram_bytes)} measured"
    return f"RAM {ram}; VRAM {vram}"


def status_table(rows: list[dict[str, Any]]) -> Table:
    """What is loaded now, of every process on this machine."""
    columns = ("model", "file", "n_ctx", "state", "memory", "last use", "pinned", "process")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        memory = ", ".join(f"{human_bytes(size)} {device}" for device, size in row["bytes"].items())
        used = "in use" if row["users"] else f"{time.time() - row['last_used']:.0f} s ago"
        cells = [row["model"], row["file"], row["n_ctx"], row["state"], memory, used, "yes" * row["pinned"], row["pid"]]
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def sessions_table(tree: Iterable[tuple[int, SessionRecord]], damaged: Iterable[SessionError]) -> Table:
    """A row per session, a rerun indented under its parent with what was changed; the damaged ones last."""
    columns = ("session", "pipeline", "status", "when", "took", "tokens/s", "question")
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    table.columns[columns.index("tokens/s")].justify = "right"
    for depth, session in tree:
        when = session.created.astimezone().strftime("%Y-%m-%d %H:%M")
        took = f"{(session.ended - session.created).total_seconds():.1f} s" if session.ended else ""
        question = " ".join(session.question.split())
        if session.from_stage:
            question = session.came_from
        shown = escape(question[:60] + "…" * (len(question) > 60))
        name = "  " * (depth - 1) + "└ " * (depth > 0) + session.id
        speed = f"{session.tokens_per_s:.1f}" if session.tokens_per_s else ""
        table.add_row(name, escape(session.pipeline), session.status, when, took, speed, shown)
    for error in damaged:
        table.add_row("", "", "damaged", "", "", "", escape(str(error)), style="red")
    return table


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
