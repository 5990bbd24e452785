"""`gguf-flow sessions`: the runs so far."""

from typing import Annotated

from cyclopts import App, Parameter

from flows.console import say, stdout
from flows.tables import session_text, sessions_table
from llm_core.session import list_sessions, load_session, load_steps
from llm_core.settings import Settings

sessions = App(name="sessions", help="The runs so far.")


@sessions.default
def list_all_sessions() -> None:
    """List the runs so far."""
    folder = Settings().sessions_folder
    found = list(list_sessions(folder))
    if found:
        stdout.print(sessions_table(found))
    else:
        say(f"no session yet in {folder}")


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
