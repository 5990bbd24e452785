"""`gguf-flow replay`: every step of a session asked once more, and compared. Needs no Prefect."""

import json as json_module
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from flows.console import say, stderr, stdout
from flows.pools import run_pool
from llm_core.errors import InputError
from llm_core.fingerprint import sha256, text_sha256
from llm_core.machine import cpu_name
from llm_core.memory import MemoryEstimates
from llm_core.plan import make_plan
from llm_core.replay import Replay, Verdict
from llm_core.session_files import load_session, load_steps
from llm_core.session_records import StepRecord
from llm_core.settings import Settings
from llm_core.snapshot import Snapshot, load_snapshot

_DIFFERS, _UNCHECKED = 1, 3
_STYLES = {"identical": "green", "differs": "red", "unchecked": "yellow"}


@dataclass(frozen=True)
class Circumstance:
    """Something that decides which tokens come, then and now; `None`: not known."""

    what: str
    then: str | None
    now: str | None

    @property
    def line(self) -> str:
        if self.then == self.now:
            return f"{self.what}: {self.now}, as then"
        return f"{self.what}: {self.now or 'not known'}, then {self.then or 'not noted'}"


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
    verdicts = []
    with (
        stderr.status("", spinner="line") as status,
        run_pool(plan.execution_mode, settings, estimates, say) as pool,
    ):
        replay = Replay(session, steps, snapshot, plan, pool, settings.cache_folder, status.update)
        for verdict in replay.verdicts():
            verdicts.append(verdict)
    found = list(_circumstances(snapshot, steps, verdicts, settings))
    if as_json:
        print(json_module.dumps(_object(session_id, verdicts, found), indent=2))
    else:
        stdout.print(_table(verdicts))
        for circumstance in found:
            stdout.print(circumstance.line, markup=False, highlight=False, soft_wrap=True)
    return _exit_code(verdicts) if verify else 0


def _circumstances(
    snapshot: Snapshot, steps: list[StepRecord], verdicts: list[Verdict], settings: Settings
) -> Iterator[Circumstance]:
    for name in dict.fromkeys(step.model for step in steps if step.model):
        then = snapshot.models[name]
        model = snapshot.registry.available[name]
        here = name not in snapshot.gone
        digest = sha256(model.path, settings.cache_folder) if here else None
        yield Circumstance(f"SHA-256 of {name}", then["sha256"], digest)
        template = text_sha256(model.gguf.chat_template) if here else None
        yield Circumstance(f"SHA-256 of {name}'s chat template", then.get("chat_template_sha256"), template)
    before = {step.build for step in steps if step.build}
    after = {verdict.build for verdict in verdicts if verdict.build}
    yield Circumstance("llama.cpp", "; ".join(sorted(before)) or None, "; ".join(sorted(after)) or None)
    yield Circumstance("CPU", snapshot.cpu, cpu_name())


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
