"""A session for people, as Markdown: a step by itself, or the whole run."""

import re
from collections.abc import Mapping

from llm_core.session_records import SessionRecord, StepRecord


def session_markdown(session: SessionRecord, steps: list[StepRecord], answer: str | None) -> str:
    """Question, answer, how it went, and every step."""
    facts = {
        "pipeline": session.pipeline,
        "status": session.status,
        "began": session.created.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        "took": f"{(session.ended - session.created).total_seconds():.1f} s" if session.ended else None,
        "rerun of": f"{session.parent}, {session.came_from}" if session.parent else None,
        "error": session.error,
        "degraded": "; ".join(session.degraded) or None,
    }
    parts = [f"# {session.id}", _quoted(session.question), _facts(facts)]
    if answer is not None:
        parts += ["## Answer", _quoted(answer.strip())]
    return "\n\n".join(parts + [step_markdown(step) for step in steps]) + "\n"


def step_markdown(step: StepRecord) -> str:
    """Answer, timings, parameters and prompt of a step, for people."""
    parts = [f"## {step.id}"]
    if step.reused_from:
        parts.append(f"*Reused from {step.reused_from}: the call is identical.*")
    parts += [f"**Degraded:** {note}" for note in step.degraded]
    parts.append(_quoted(step.text))
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
    counts["truncated"] = step.truncated or None
    if step.drafted_tokens:
        counts["guessed_tokens"] = f"{step.accepted_tokens} of {step.drafted_tokens} right"
    seen = ", ".join(f"{image.source} ({image.file_name})" for image in step.images) or None
    facts = {
        "model": step.model,
        "answered_by": step.answered_by,
        "images": seen,
        **counts,
        **timings,
        **step.parameters,
    }
    parts += ["### Figures", _facts(facts)]
    if step.prompt:
        fence = "`" * max(4, 1 + max(map(len, re.findall("`+", step.prompt)), default=0))
        parts += ["### Prompt", f"{fence}text\n{step.prompt}\n{fence}"]
    return "\n\n".join(parts)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines() or [""])


def _cell(value: object) -> str:
    return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")


def _facts(facts: Mapping[str, object]) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])
