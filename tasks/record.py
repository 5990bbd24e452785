"""A finished step into the session, and its mirror in the Prefect UI."""

import threading

from prefect.artifacts import create_markdown_artifact
from slugify import slugify

from llm_core.session_records import StepRecord
from tasks.run import Run

_one_writer = threading.Lock()


def record(run: Run, step: StepRecord, file_name: str) -> None:
    """Save `step`, then show it as a markdown artifact of the task run that made it."""
    with _one_writer:
        run.session.add(step, file_name)
    key = artifact_key(run.plan.pipeline, step.stage, step.member or step.kind)
    create_markdown_artifact(key=key, markdown=step_markdown(step), description=step.id)


def artifact_key(*names: str) -> str:
    """Lowercase letters, digits and dashes are all Prefect takes; stable per stage, so that a key has a history."""
    return slugify("-".join(names), max_length=200) or "step"


def step_markdown(step: StepRecord) -> str:
    """Answer, timings, parameters and prompt of a step, for people."""
    parts = [f"## {step.id}", _quoted(step.text)]
    if step.reasoning:
        parts += ["### Reasoning", _quoted(step.reasoning)]
    if step.aggregation:
        evidence = {name: value for name, value in step.aggregation.items() if name != "candidates"}
        parts += ["### Aggregation", "\n".join(f"- **{name}**: {_cell(value)}" for name, value in evidence.items())]
        for member, text in step.aggregation["candidates"].items():
            parts += [f"#### {member}", _quoted(text)]
    timings = {name: getattr(step, name) for name in ("load_s", "ttft_s", "tpot_s", "tokens_per_s")}
    counted = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "finish_reason", "seed")
    counts = {name: getattr(step, name) for name in counted}
    facts = {"model": step.model, **counts, **timings, **step.parameters}
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    parts += ["### Figures", "\n".join(["| | |", "|---|---|", *rows])]
    if step.prompt:
        parts += ["### Prompt", f"````text\n{step.prompt}\n````"]
    return "\n\n".join(parts)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def _cell(value: object) -> str:
    return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")
