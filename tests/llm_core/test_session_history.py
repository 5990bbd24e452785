"""The sessions folder as a history: the tree, filters, and what may be deleted."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llm_core.atomic_write import write_whole
from llm_core.errors import InputError, SessionError
from llm_core.session_history import Wanted, as_tree, delete_session, parse_age, to_prune
from llm_core.session_records import SessionRecord

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def record(number: int, parent: int | None = None, **more: object) -> SessionRecord:
    fields = {
        "id": f"session_{number:03d}",
        "parent": None if parent is None else f"session_{parent:03d}",
        "status": "completed",
        "pipeline": "base",
        "question": "Why is the sky blue?",
        "execution_mode": "auto",
        "created": NOON - timedelta(days=10 - number),
    }
    return SessionRecord.model_validate(fields | more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sessions 1 to 4, a day apart, the last one 6 days before noon; the third is running."""
    for number in (1, 2, 3, 4):
        session = record(number, status="running" if number == 3 else "completed")
        write_whole(tmp_path / session.id / "session.json", session.model_dump_json())
    return tmp_path


def shape(*sessions: SessionRecord) -> list[tuple[int, str]]:
    return [(depth, session.id[-1]) for depth, session in as_tree(sessions)]


def test_reruns_stand_under_their_parent() -> None:
    sessions = [record(1), record(2), record(3, parent=1), record(4, parent=3), record(5, parent=1)]
    assert shape(*sessions) == [(0, "1"), (1, "3"), (2, "4"), (1, "5"), (0, "2")]


def test_rerun_whose_parent_is_gone_stands_by_itself() -> None:
    assert shape(record(2, parent=1), record(3, parent=2)) == [(0, "2"), (1, "3")]


def test_sessions_that_name_each_other_as_parent_are_all_listed() -> None:
    assert shape(record(1, parent=2), record(2, parent=1)) == [(0, "1"), (1, "2")]


@pytest.mark.parametrize(
    ("wanted", "has"),
    [
        (Wanted(), True),
        (Wanted(pipeline="base", status="completed", text="SKY", since=NOON - timedelta(days=9)), True),
        (Wanted(pipeline="other"), False),
        (Wanted(status="failed"), False),
        (Wanted(text="sea"), False),
        (Wanted(since=NOON - timedelta(days=8)), False),
    ],
)
def test_filters(wanted: Wanted, has: bool) -> None:
    assert wanted.has(record(1)) is has


def test_age_has_a_number_and_a_unit() -> None:
    assert [parse_age(age) for age in ("90m", "24h", "30d", "2w")] == [
        timedelta(minutes=90),
        timedelta(hours=24),
        timedelta(days=30),
        timedelta(days=14),
    ]
    for wrong in ("", "24", "h", "-1h", "1 h", "1y"):
        with pytest.raises(InputError, match=f"'{wrong}' is no age"):
            parse_age(wrong)


@pytest.mark.parametrize(
    ("days", "keep", "gone"),
    [(0, 0, "124"), (7, 0, "12"), (8, 0, "1"), (9, 0, ""), (0, 1, "12"), (0, 2, "12"), (0, 3, "1"), (0, 9, "")],
)
def test_old_and_finished_sessions_are_pruned_but_for_the_newest(folder: Path, days: int, keep: int, gone: str) -> None:
    assert "".join(session.id[-1] for session in to_prune(folder, timedelta(days=days), keep, NOON)) == gone


def test_delete_removes_one_folder_and_no_other(folder: Path) -> None:
    delete_session(folder, "session_002")
    assert sorted(path.name for path in folder.iterdir()) == ["session_001", "session_003", "session_004"]


def test_running_session_is_deleted_only_by_force(folder: Path) -> None:
    with pytest.raises(SessionError, match="session_003 is running, or its process was killed; --force"):
        delete_session(folder, "session_003")
    delete_session(folder, "session_003", force=True)
    assert not (folder / "session_003").exists()


def test_damaged_session_is_deleted_only_by_force(folder: Path) -> None:
    (folder / "session_001" / "session.json").write_text("{")
    with pytest.raises(SessionError, match="damaged"):
        delete_session(folder, "session_001")
    delete_session(folder, "session_001", force=True)
    assert not (folder / "session_001").exists()


@pytest.mark.parametrize("name", ["..", "../elsewhere", "", ".", "session_001/../../elsewhere", "other"])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_outside_the_sessions_folder_is_deleted(folder: Path, name: str, force: bool) -> None:
    for outside in (folder.parent / "elsewhere", folder / "other"):
        outside.mkdir(exist_ok=True)
    with pytest.raises(SessionError, match="no session"):
        delete_session(folder, name, force=force)
    assert (folder.parent / "elsewhere").is_dir()
    assert (folder / "other").is_dir()


def test_link_to_elsewhere_is_not_followed(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    write_whole(elsewhere / "session.json", record(9).model_dump_json())
    (folder / "session_009").symlink_to(elsewhere)
    with pytest.raises(SessionError, match="is a link; remove it by hand"):
        delete_session(folder, "session_009", force=True)
    assert "session_009" not in [session.id for session in to_prune(folder, timedelta(0), 0, NOON)]
    assert (elsewhere / "session.json").exists()
