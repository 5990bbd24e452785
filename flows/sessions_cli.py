"""`gguf-flow sessions`: the runs so far."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from flows.console import say, stdout
from flows.sessions_table import session_text, sessions_lines
from llm_core.errors import InputError, SessionError
from llm_core.session_files import list_sessions, load_final, load_session, load_steps
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
    if readable:
        heading, *lines = sessions_lines(as_tree(readable), stdout.width)
        stdout.print(heading, style="bold", markup=False, highlight=False, soft_wrap=True)
        print("\n".join(lines))
    for error in damaged:
        stdout.print(f"damaged: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    if not (readable or damaged):
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
def show_session(id: str, *, step: int | None = None, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show one run: the question, every step's answer, the final answer.

    Parameters
    ----------
    id
        Such as session_001.
    step
        Only the stage with this number.
    json
        Print the session and its steps as one JSON object.
    """
    folder = Settings().sessions_folder
    session = load_session(folder, id)
    steps = load_steps(folder, session)
    if step is not None:
        numbers = sorted({each.number for each in steps})
        steps = [each for each in steps if each.number == step]
        if not steps:
            known = f"it has {', '.join(map(str, numbers))}" if numbers else "it has none"
            raise InputError(f"{id} has no step {step}; {known}")
    if json:
        import json as json_module

        data = session.model_dump(mode="json") | {"steps": [each.model_dump(mode="json") for each in steps]}
        print(json_module.dumps(data, indent=2))
        return
    print(session_text(session, steps, load_final(folder, session) if step is None else None))


@sessions.command(name="diff")
def diff_two_sessions(a: str, b: str) -> None:
    """Show what differs between two runs: what was set, and the words of each step's answer.

    Parameters
    ----------
    a
        Such as session_001.
    b
        Such as session_002.
    """
    from flows.diff_view import diff_text
    from llm_core.session_diff import diff_sessions

    diff = diff_sessions(Settings().sessions_folder, a, b)
    stdout.print(diff_text(diff, colour=stdout.color_system is not None), soft_wrap=True)


@sessions.command(name="export")
def export_one_session(id: str, *, output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None) -> None:
    """Write one run into a file to give away.

    Parameters
    ----------
    id
        Such as session_001.
    output
        A Markdown report (.md) or a zip of all its files (.zip); ID.md here if left out.
    """
    from llm_core.session_export import export_session

    target = output or Path(f"{id}.md")
    export_session(Settings().sessions_folder, id, target)
    say(f"{id}: {target}")
