"""Old sessions go, on a schedule or when asked in the UI; `gguf-flow sessions prune` does the same."""

import asyncio

from prefect import flow
from prefect.artifacts import acreate_table_artifact
from pydantic import Field

from llm_core.documents import Document, validate
from llm_core.errors import SessionError
from llm_core.session_history import delete_session, parse_age, to_prune
from llm_core.settings import Settings


class _Asked(Document):
    older_than: str
    keep: int = Field(ge=0)


# What is wrong is said in our own words: one line, with the key path.
@flow(name="prune", validate_parameters=False, description="Deletes finished sessions that are older than a while.")
async def prune(older_than: str = "30d", keep: int = 100) -> list[str]:
    """Delete finished sessions for good; returns their names.

    Args:
        older_than: 90m, 24h, 30d, 2w.
        keep: So many of the newest stay, however old.
    """
    asked = validate({"older_than": older_than, "keep": keep}, _Asked, "prune")
    folder = Settings().sessions_folder
    table = []
    for session in await asyncio.to_thread(to_prune, folder, parse_age(asked.older_than), asked.keep):
        try:
            await asyncio.to_thread(delete_session, folder, session.id)
        except SessionError:
            continue  # someone else was faster, or it runs again
        table.append({"session": session.id, "began": session.created.isoformat(), "question": session.question})
    await acreate_table_artifact(key="pruned-sessions", table=table, description=f"{len(table)} sessions deleted")
    return [row["session"] for row in table]
