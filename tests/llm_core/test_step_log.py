"""Records of a dataset run, appended as they come, and what of them outlives a crash."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm_core.call_params import LoadParams, SamplingParams
from llm_core.dataset import Item
from llm_core.dataset_results import DatasetResults
from llm_core.errors import InputError, SessionError
from llm_core.plan import AggregationPlan, Call, Plan, StagePlan
from llm_core.step_log import ItemStep, StepLog

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(item: int, text: str = "yes", error: str | None = None, **fields: object) -> ItemStep:
    values = {"id": "1 a: m", "number": 1, "stage": "a", "started": NOW, "ended": NOW, **fields}
    return ItemStep(item=item, text=text, error=error, **values)  # type: ignore[arg-type]


def test_records_come_back_by_item_also_after_reopening(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "step1.jsonl")
    log.add(record(2, "zwei — ☃"))
    log.add(record(1, error="too long"))
    log.close()
    again = StepLog(tmp_path / "step1.jsonl")
    assert again.get(2).text == "zwei — ☃"  # type: ignore[union-attr]
    assert again.get(1).error == "too long"  # type: ignore[union-attr]
    assert again.get(3) is None
    assert (len(again), again.n_failed, 3 in again) == (2, 1, False)


def test_half_written_last_line_is_cut_off_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "step1.jsonl"
    log = StepLog(path)
    for item in (1, 2):
        log.add(record(item))
    log.close()
    whole = path.read_bytes()
    for cut in range(1, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        again = StepLog(path)
        assert (1 in again, 2 in again) == (True, False)
        again.add(record(2))
        again.close()
        assert path.read_bytes() == whole


def test_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step1.jsonl"
    path.write_text('{"item": 1}\nrubbish\n{"item": 2}\n')
    with pytest.raises(SessionError, match=r"step1\.jsonl: line 2 is damaged"):
        StepLog(path)


def test_records_from_several_threads_stand_in_lines_of_their_own(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "step1.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [log.add(record(n * 100 + i, "x" * i)) for i in range(100)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(log.get(n).text == "x" * (n % 100) for n in range(800))  # type: ignore[union-attr]


def panel() -> Plan:
    calls = tuple(Call(name, name, LoadParams(name, 64), SamplingParams()) for name in ("m", "n"))
    draft = StagePlan("draft", 1, (), calls[:1], "answer_only", None, 0)
    vote = StagePlan("vote", 2, ("draft",), calls, "answer_only", AggregationPlan("majority_vote"), 0)
    return Plan("p", "auto", (draft, vote), "fail", "vote")


@pytest.fixture
def logs(tmp_path: Path) -> dict[str, StepLog]:
    names = ("draft: m", "vote: m", "vote: n", "vote: majority_vote")
    return {name: StepLog(tmp_path / f"{number}.jsonl") for number, name in enumerate(names)}


def test_row_holds_the_columns_the_answer_and_every_step(tmp_path: Path, logs: dict[str, StepLog]) -> None:
    logs["draft: m"].add(record(1, "Blue.", member="m", completion_tokens=5))
    for member in ("m", "n"):
        logs[f"vote: {member}"].add(record(1, "blue", member=member, completion_tokens=2))
    merged = {"kind": "majority_vote", "counts": {"blue": 2}, "candidates": {"m": "blue", "n": "blue"}}
    logs["vote: majority_vote"].add(record(1, "blue", kind="aggregation", aggregation=merged))
    row = DatasetResults(tmp_path / "out.jsonl", panel(), logs).row(Item(1, "Sky?", {"question": "Sky?", "gold": "b"}))
    assert row == {
        "question": "Sky?",
        "gold": "b",
        "result": {
            "item": 1,
            "answer": "blue",
            "error": None,
            "completion_tokens": 9,
            "steps": {
                "draft": "Blue.",
                "vote": {
                    "answer": "blue",
                    "members": {"m": "blue", "n": "blue"},
                    "evidence": {"kind": "majority_vote", "counts": {"blue": 2}},
                },
            },
        },
    }


def test_row_of_a_failed_item_says_where_and_why(tmp_path: Path, logs: dict[str, StepLog]) -> None:
    logs["draft: m"].add(record(1, "", error="the prompt has 900 tokens", id="1 draft: m"))
    result = DatasetResults(tmp_path / "out.jsonl", panel(), logs).row(Item(1, "?", {}))["result"]
    assert (result["answer"], result["error"]) == (None, "1 draft: m: the prompt has 900 tokens")
    assert result["steps"] == {}


def test_rows_are_appended_when_their_last_step_is_done_and_ordered_at_the_end(
    tmp_path: Path, logs: dict[str, StepLog]
) -> None:
    items = [Item(number, f"{number}?", {"question": f"{number}?"}) for number in (1, 2)]
    results = DatasetResults(tmp_path / "out.jsonl", panel(), logs)

    def numbers() -> list[int]:
        return [json.loads(line)["result"]["item"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    for item in reversed(items):
        assert numbers() == [2] * (item.number == 1)
        for _ in range(4):
            results.settle(item)
    assert numbers() == [2, 1]
    results.finish(items)
    assert numbers() == [1, 2]


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, logs: dict[str, StepLog]) -> None:
    with pytest.raises(InputError, match=r"out\.jsonl cannot be written: No such file or directory"):
        DatasetResults(tmp_path / "nowhere" / "out.jsonl", panel(), logs)
