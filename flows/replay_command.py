"""`gguf-flow replay`: every step of a session asked once more, and compared. Needs no Prefect."""

import json as json_module
from dataclasses import asdict
from typing import Any

from rich.markup import escape
from rich.table import Table

from flows.console import say, stderr, stdout
from flows.pools import run_pool
from llm_core.circumstances import Circumstance, circumstances
from llm_core.errors import InputError
from llm_core.memory import MemoryEstimates
from llm_core.planner import make_plan
from llm_core.replay import Replay, Verdict
from llm_core.session_files import load_session, load_steps
from llm_core.settings import Settings
from llm_core.snapshot import load_snapshot

_DIFFERS, _UNCHECKED = 1, 3
_STYLES = {"identical": "green", "differs": "red", "unchecked": "yellow"}


def replay_session(session_id: str, settings: Settings, *, verify: bool, as_json: bool) -> int:
    """Say of each step whether it comes again; the exit code with `verify`: 0 all identical, 1 one differs, 3 none
    differs, but some cannot be checked.

    Raises:
        GgufFlowError: the session cannot be read or replayed.
    """
    session = load_session(settings.sessions_folder, session_id)
    if session.dataset:
        raise InputError(f"{session_id} went through a dataset; replay takes sessions of one question")
    steps = load_steps(settings.sessions_folder, session)
    snapshot = load_snapshot(settings.sessions_folder, session_id)
    plan = make_plan(snapshot.spec, snapshot.registry, source=snapshot.path)
    estimates = MemoryEstimates(settings.cache_folder)
    with (
        stderr.status("", spinner="line") as status,
        run_pool(plan.execution_mode, settings, estimates, say) as pool,
    ):
        replay = Replay(session, steps, snapshot, plan, pool, settings.cache_folder, status.update)
        verdicts = list(replay.verdicts())
    builds = [verdict.build for verdict in verdicts if verdict.build]
    found = list(circumstances(snapshot, steps, builds, settings.cache_folder))
    if as_json:
        print(json_module.dumps(_object(session_id, verdicts, found), indent=2))
    else:
        stdout.print(_table(verdicts))
        for circumstance in found:
            stdout.print(str(circumstance), markup=False, highlight=False, soft_wrap=True)
    return _exit_code(verdicts) if verify else 0


def _table(verdicts: list[Verdict]) -> Table:
    table = Table("step", "again", "", box=None, pad_edge=False, header_style="bold")
    for verdict in verdicts:
        table.add_row(escape(verdict.step), f"[{_STYLES[verdict.outcome]}]{_said(verdict)}[/]", escape(verdict.reason))
    return table


def _said(verdict: Verdict) -> str:
    if verdict.outcome == "unchecked":
        return "cannot be checked"
    return verdict.outcome + (f" at token {verdict.token}" if verdict.token else "")


def _object(session_id: str, verdicts: list[Verdict], found: list[Circumstance]) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "steps": [asdict(verdict) for verdict in verdicts],
        "circumstances": [asdict(circumstance) for circumstance in found],
    }


def _exit_code(verdicts: list[Verdict]) -> int:
    outcomes = {verdict.outcome for verdict in verdicts}
    return _DIFFERS if "differs" in outcomes else _UNCHECKED if "unchecked" in outcomes or not outcomes else 0
