"""`gguf-flow sessions`: the runs so far."""

from datetime import UTC, datetime
from typing import Annotated

from cyclopts import App, Parameter, validators

from flows.console import say, stdout
from flows.tables import session_text, sessions_table
from llm_core.errors import SessionError
from llm_core.session import list_sessions, load_session, load_steps
from llm_core.session_history import Wanted, as_tree, delete_session, parse_age, to_prune
from llm_core.session_records import SessionRecord, Status
from llm_core.settings import Settings

sessions = App(name="sessions", help="The runs so far.")


@sessions.default
def list_all_sessions(
    text: str | None = None,
    *,
    pipeline: Annotated[str | None, Parameter(name=["--pipeline", "-p"])] = None,
    status: Status | None = None,
    since: str | None = None,
) -> None:
    """List the runs so far, reruns under their parent.

    Parameters
    ----------
    text
        Only runs whose question has it.
    pipeline
        Only runs of this pipeline.
    status
        Only runs that ended, or are, so.
    since
        Only runs that began within this time: 90m, 24h, 30d, 2w.
    """
    folder = Settings().sessions_folder
    began = datetime.now(UTC) - parse_age(since) if since else None
    wanted = Wanted(pipeline, status, began, text)
    found = list(list_sessions(folder))
    readable = [session for session in found if isinstance(session, SessionRecord) and wanted.has(session)]
    damaged = [session for session in found if isinstance(session, SessionError)] if wanted == Wanted() else []
    if readable or damaged:
        stdout.print(sessions_table(as_tree(readable), damaged))
    else:
        say(f"no such session in {folder}" if found else f"no session yet in {folder}")


@sessions.command(name="delete")
def delete_sessions(*ids: str, force: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Delete runs for good; the reruns of one stay.

    Parameters
    ----------
    ids
        Such as session_001.
    force
        Even if a run is said to be running, or its session is damaged.
    """
    folder = Settings().sessions_folder
    for id in ids:
        delete_session(folder, id, force=force)
        say(f"{id} deleted")


@sessions.command(name="prune")
def prune_sessions(*, older_than: str, keep: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0) -> None:
    """Delete finished runs that are older than a while.

    Parameters
    ----------
    older_than
        90m, 24h, 30d, 2w.
    keep
        So many of the newest stay, however old.
    """
    folder = Settings().sessions_folder
    gone = to_prune(folder, parse_age(older_than), keep)
    for session in gone:
        delete_session(folder, session.id)
    say(f"{len(gone)} sessions deleted in {folder}")


@sessions.command(name="show")
def show_session(id: str, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show one run: the question, every step's answer, the final answer.

    Parameters
    ----------
    id
        Such as session_001.
    json
        Print the session and its steps as one JSON object.
    """
    folder = Settings().sessions_folder
    session = load_session(folder, id)
    steps = load_steps(folder, session)
    if json:
        import json as json_module

        data = session.model_dump(mode="json") | {"steps": [step.model_dump(mode="json") for step in steps]}
        print(json_module.dumps(data, indent=2))
        return
    final = folder / id / "final.txt"
    print(session_text(session, steps, final.read_text() if final.exists() else None))
