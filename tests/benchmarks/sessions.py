"""How long `gguf-flow sessions` takes, as a process, with 5,000 sessions on a warm disk.

`python -m tests.benchmarks.sessions [ROUNDS]`: beside `gguf-flow sessions --help`, which reads none (ROUNDS: 9).
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from llm_core.session_records import SessionRecord

N_SESSIONS = 5000


def write_sessions(folder: Path) -> None:
    """Every third is a rerun of the one before."""
    for number in range(1, N_SESSIONS + 1):
        is_rerun = number % 3 == 0
        record = SessionRecord(
            id=f"session_{number:03d}",
            parent=f"session_{number - 1:03d}" if is_rerun else None,
            from_stage="draft" if is_rerun else None,
            status="completed",
            pipeline="base",
            question=f"Question {number}: why is the sky blue at noon, and red in the evening?",
            execution_mode="auto",
            created=datetime.now(UTC),
            ended=datetime.now(UTC),
            files={f"{stage} stage: model": f"step{stage}.json" for stage in range(1, 7)},
        )
        (folder / record.id).mkdir(parents=True)
        (folder / record.id / "session.json").write_text(record.model_dump_json(indent=2))


def seconds(folder: Path, *options: str) -> float:
    environment = os.environ | {"GGUF_FLOW_SESSIONS_DIR": str(folder)}
    started = time.perf_counter()
    command = [sys.executable, "-m", "flows", "sessions", *options]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if not options and len(shown.stdout.splitlines()) != N_SESSIONS + 1:
        raise SystemExit("not every session is listed")
    return time.perf_counter() - started


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sessions(folder)
        seconds(folder)
        of_help, of_list = zip(*((seconds(folder, "--help"), seconds(folder)) for _ in range(rounds)), strict=True)
    for what, found in ((f"{N_SESSIONS} sessions", of_list), ("--help", of_help)):
        print(f"{what}: median of {rounds} {statistics.median(found):.2f} s, from {min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main()
