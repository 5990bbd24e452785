"""A process that does nothing but write sessions: `python -m tests.llm_core.session_writer FOLDER NAME [N]`.

It begins when its stdin is closed, says so on stdout, and without `N` goes on until it is killed.
"""

import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

from llm_core.session import Session
from llm_core.session_records import DatasetRef, StepRecord
from llm_core.step_log import ItemStep, StepLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEXT = "As long as a page or two. " * 400
STEPS = ("draft", "critique", "final")
N_ITEMS = 10


def write_answered(folder: Path, question: str) -> None:
    """A session of three steps, from its beginning to its end."""
    session = Session.create(
        folder, pipeline="base", question=question, execution_mode="auto", snapshot={"question": question, "text": TEXT}
    )
    for number, stage in enumerate(STEPS, 1):
        text = f"{question} {TEXT}"
        step = StepRecord(id=f"{number} {stage}: m", number=number, stage=stage, text=text, started=NOW, ended=NOW)
        session.add(step, f"step{number}.json")
    session.complete(f"{question} {TEXT}")


def write_dataset_run(folder: Path, question: str) -> None:
    """A session of ten items, with one log."""
    dataset = DatasetRef(path=Path("/questions.jsonl"), sha256="0" * 64, n_items=N_ITEMS)
    session = Session.create(
        folder, pipeline="base", question=question, execution_mode="auto", snapshot={}, dataset=dataset
    )
    log = StepLog(session.add_log("1 draft: m", "step1.jsonl"))
    for item in range(1, N_ITEMS + 1):
        log.add(ItemStep(id="1 draft: m", number=1, stage="draft", text=TEXT, started=NOW, ended=NOW, item=item))
    log.close()
    session.complete(f"{N_ITEMS} of {N_ITEMS}")


def main() -> None:
    """Write runs and dataset runs by turns, or `N` runs only."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    sys.stdin.read()
    print("writing", flush=True)
    if len(sys.argv) > 3:
        for n in range(int(sys.argv[3])):
            write_answered(folder, f"{name}.{n}")
        return
    for n in itertools.count():
        (write_dataset_run if n % 3 == 2 else write_answered)(folder, f"{name}.{n}")


if __name__ == "__main__":
    main()
