"""Old sessions deleted by a flow, on a real Prefect server."""

from datetime import UTC, datetime, timedelta

import pytest

from flows.prune import prune
from llm_core.atomic_write import write_whole
from llm_core.errors import ConfigError, InputError
from llm_core.session_records import SessionRecord
from tests.conftest import Project

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def aged(project: Project) -> Project:
    """Sessions 1 to 3 are 5, 4 and 3 days old, finished, but for the second, which is running."""
    for number in (1, 2, 3):
        session = SessionRecord(
            id=f"session_{number:03d}",
            status="running" if number == 2 else "completed",
            pipeline="base",
            question="Why?",
            execution_mode="auto",
            created=datetime.now(UTC) - timedelta(days=6 - number),
        )
        write_whole(project.sessions / session.id / "session.json", session.model_dump_json())
    return project


def left(project: Project) -> list[str]:
    return sorted(path.name for path in project.sessions.iterdir())


async def test_what_is_old_and_finished_goes(aged: Project) -> None:
    assert await prune(older_than="2d", keep=0) == ["session_001", "session_003"]
    assert left(aged) == ["session_002"]


async def test_newest_stay_and_so_does_what_is_young(aged: Project) -> None:
    assert await prune(older_than="2d", keep=1) == ["session_001"]
    assert await prune(older_than="1w", keep=0) == []
    assert left(aged) == ["session_002", "session_003"]


async def test_senseless_age_or_number_deletes_nothing(aged: Project) -> None:
    with pytest.raises(InputError, match="'soon' is no age"):
        await prune(older_than="soon")
    with pytest.raises(ConfigError, match=r"^prune: keep: input should be greater than or equal to 0, not -1$"):
        await prune(older_than="2d", keep=-1)
    assert left(aged) == ["session_001", "session_002", "session_003"]
