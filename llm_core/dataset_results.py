"""The results of a dataset run as JSON lines: each item's own columns, and what the pipeline made of it."""

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_core.atomic_write import replace_whole
from llm_core.dataset import RESULT, Item
from llm_core.errors import InputError, SessionError
from llm_core.plan import Plan, StagePlan
from llm_core.step_log import ItemStep, StepLog


def step_names(stage: StagePlan) -> list[str]:
    """Of the members' steps, then of the aggregation, as they stand in sessions and in the Prefect UI."""
    members = [f"{stage.id}: {call.member}" for call in stage.calls]
    return [*members, f"{stage.id}: {stage.aggregation.kind}"] if stage.aggregation else members


class DatasetResults:
    """Appends an item's row when its last step is done; `finish` puts the rows in the order of the dataset.

    Raises:
        InputError: `path` cannot be written.
    """

    def __init__(self, path: Path, plan: Plan, logs: Mapping[str, StepLog]) -> None:
        self.path, self._plan, self._logs = path, plan, logs
        self._n_steps = len(logs)
        self._settled: dict[int, int] = {}
        self._lock = threading.Lock()
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None

    def settle(self, item: Item) -> None:
        """One step is done with `item`: answered, failed or not reached."""
        with self._lock:
            self._settled[item.number] = self._settled.get(item.number, 0) + 1
            if self._settled[item.number] == self._n_steps:
                del self._settled[item.number]
                self._file.write(self._line(item))
                self._file.flush()

    def close(self) -> None:
        """Stop appending; what stands there stays."""
        self._file.close()

    def finish(self, items: Sequence[Item]) -> None:
        """Write all rows once more, in order and whole."""
        self.close()
        try:
            replace_whole(self.path, (self._line(item) for item in items))
        except OSError as error:
            raise SessionError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def row(self, item: Item) -> dict[str, Any]:
        """The columns of an item, and under `result` the answer, the error and every step's text."""
        steps: dict[str, Any] = {}
        answer, error, n_tokens = None, None, 0
        degraded: list[str] = []
        for stage in self._plan.stages:
            records = [self._logs[name].get(item.number) for name in step_names(stage)]
            found = [record for record in records if record]
            n_tokens += sum(record.completion_tokens or 0 for record in found)
            degraded += [note for record in found for note in record.degraded]
            if not (stage.may_miss and records[-1]):  # what a quorum has made good is no error
                error = error or next((f"{record.id}: {record.error}" for record in found if record.error), None)
            if any(record.error is None for record in found):
                steps[stage.id] = _texts(stage, found)
            last = records[-1]
            if stage.id == self._plan.final and last and last.error is None:
                answer = last.text
        result = {"item": item.number, "answer": answer, "error": error, "completion_tokens": n_tokens, "steps": steps}
        return {**item.columns, RESULT: result | ({"degraded": degraded} if degraded else {})}

    def _line(self, item: Item) -> str:
        return json.dumps(self.row(item), ensure_ascii=False) + "\n"


def _texts(stage: StagePlan, records: Sequence[ItemStep]) -> Any:
    """The text of a single model's stage; of one with several, each member's and the merged answer."""
    answered = [record for record in records if record.error is None]
    if stage.aggregation is None:
        return answered[0].text
    merged = next((record for record in answered if record.kind == "aggregation"), None)
    members = {record.member: record.text for record in answered if record is not merged}
    return {
        "answer": merged.text if merged else None,
        "members": members,
        "evidence": {k: v for k, v in (merged.aggregation or {}).items() if k != "candidates"} if merged else None,
    }
