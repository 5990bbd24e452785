"""A plan for people: the dry run."""

from pathlib import Path

from llm_core.cascade import StopRule
from llm_core.plan import Call, Plan, StagePlan


def plan_text(plan: Plan) -> str:
    """Stages, who is asked in each and with which parameters, and whose answer it is."""
    n_calls = sum(1 for _ in plan.calls)
    lines = [f"pipeline {plan.pipeline}: {len(plan.stages)} stages, {n_calls} model calls, {plan.execution_mode}"]
    for stage in plan.stages:
        lines += ["", *_stage_lines(stage, is_final=stage.id == plan.final)]
    return "\n".join(lines)


def _stage_lines(stage: StagePlan, is_final: bool) -> list[str]:
    inputs = ", ".join(("question", *stage.inputs))
    lines = [f"{stage.number}. {stage.id}   reads {inputs}   hands on {stage.output_mode}" + ("   ← answer" * is_final)]
    lines += [f"   looks at {', '.join(stage.images)}"] if stage.images else []
    for position, call in enumerate(stage.calls):
        branch = "├─" if stage.aggregation else "└─"
        lines.append(_call_line(branch, f"{_turn(stage, position)}{call.member}", call))
    if stage.aggregation:
        synthesis = stage.aggregation.synthesis
        if synthesis:
            lines.append(_call_line("└─", f"{stage.aggregation.kind} by {synthesis.member}", synthesis))
        else:
            to_next = ", for the next layer" if stage.layer_of else ""
            lines.append(f"   └─ {stage.aggregation.kind}{to_next}{_stop_line(stage.stop)}")
    if stage.approve:
        lines.append("   ⏸ waits for a person to approve or edit it")
    return lines


def _turn(stage: StagePlan, position: int) -> str:
    """When a member of a cascade is asked."""
    if position >= len(stage.surely_asked):
        return "then, if they disagree, "
    return "then " if stage.stop and position else ""


def _stop_line(stop: StopRule | None) -> str:
    if stop is None:
        return ""
    return f": asks on until {stop.at_least} or more have answered and agreement is {stop.threshold:g}"


def _call_line(branch: str, label: str, call: Call) -> str:
    sampling, load = call.sampling, call.load
    if load:
        who, drawn = Path(load.path).name, ["temperature"]
        drawn += ["top_p", "top_k", "min_p", "seed"] if sampling.temperature > 0 else []
    else:
        assert call.remote
        who, drawn = f"{call.remote.provider}: {call.remote.model}", list(call.chosen)
    parameters = [_parameter(name, getattr(sampling, name)) for name in drawn]
    parameters.append(f"max_tokens {sampling.max_tokens}")
    if load:
        parameters.append(f"n_ctx {load.n_ctx}")
        parameters += [f"KV {load.kv_type}"] if load.kv_type != "f16" else []
    parameters += ["cache"] if call.cache else []
    if call.constraint:
        parameters.append("by its response_schema" if call.constraint.schema else "by its grammar")
    if call.fallback:
        parameters.append(f"else {', else '.join(other.model for other in call.fallback)}")
    return f"   {branch} {label} ({who}): {' · '.join(parameters)}"


def _parameter(name: str, value: object) -> str:
    if name == "seed":
        return f"seed {'drawn' if value is None else value}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
