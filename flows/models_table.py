"""Models as tables for the terminal."""

import time
from typing import Any

from rich.markup import escape
from rich.table import Table

from llm_core.memory import Measured, MemoryEstimates
from llm_core.registry import ModelRegistry


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
        state = "ready, sees images" if model.mmproj else "ready"
        table.add_row(escape(name), file, state, size, quantization, context, memory)
    for name, missing in registry.missing.items():
        table.add_row(escape(name), escape(missing.entry.file or ""), escape(missing.reason), style="red")
    for name, found in registry.remote.items():
        table.add_row(escape(name), escape(f"{found.remote.provider}: {found.remote.model}"), "remote")
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
