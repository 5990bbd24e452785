"""What a retried run takes over from its earlier try, where the pipeline or a model was edited in between."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_core.plan import Plan, StagePlan
from llm_core.session_files import load_steps
from llm_core.session_records import Branch, SessionRecord
from llm_core.snapshot import as_saved, file_digests, read_snapshot


def retry_branch(sessions: Path, earlier: SessionRecord, plan: Plan, models: Mapping[str, Any]) -> Branch | None:
    """Where the session of a retry leaves that of the earlier try: at the first stage that is another by now.

    Args:
        plan: of the retry.
        models: what its snapshot says of each model.

    Returns:
        `None` where nothing was edited: the retry goes on with the session that there is.

    Raises:
        SessionError: the earlier session cannot be read.
    """
    before = read_snapshot(sessions, earlier.id)
    plan_before, models_before = before.get("plan", {}), before.get("models", {})
    replaced = {
        name for name, model in models.items() if file_digests(models_before.get(name, {})) != file_digests(model)
    }
    if plan_before == as_saved(asdict(plan)) and not replaced:
        return None
    stages_before = {stage["id"]: stage for stage in plan_before.get("stages", ())}
    same: set[str] = set()
    for stage in plan.stages:
        is_same = stages_before.get(stage.id) == as_saved(asdict(stage)) and not replaced & _models(stage)
        if is_same and same.issuperset(stage.inputs):
            same.add(stage.id)
    steps = [step for step in load_steps(sessions, earlier) if step.stage in same]
    carried = {step.id: earlier.files[step.id] for step in steps}
    answered = {step.stage for step in steps}
    from_stage = next((stage.id for stage in plan.stages if stage.id not in answered), plan.final)
    return Branch(
        earlier.id, earlier.flow_run_id, from_stage, ("edited before a retry",), sessions / earlier.id, carried
    )


def _models(stage: StagePlan) -> set[str]:
    return {asked.model for call in stage.asked for asked in (call, *call.fallback)}
