"""The stages of a plan as Prefect tasks: futures passed from one to the next draw the graph."""

import asyncio
from typing import Any

from prefect import allow_failure
from prefect.futures import PrefectFuture, wait

from flows.approval import approved_text
from flows.outcome import StepFuture
from llm_core.plan import Call, StagePlan
from llm_core.session_files import load_step
from llm_core.session_records import StepRecord
from tasks.aggregate import aggregate
from tasks.approve import approve
from tasks.cascade import generate_if_needed
from tasks.generate import generate
from tasks.preflight import Admission, preflight
from tasks.reuse import reuse
from tasks.run import Run


class StageTasks:
    """Submits the tasks of one run, stage after stage, without waiting for them, but where a person has to approve."""

    def __init__(self, run: Run, question: str) -> None:
        self._run, self._question = run, question
        self.steps: dict[str, StepFuture] = {}
        """Every task so far, by name."""
        self._outputs: dict[str, StepFuture] = {}
        """The last task of each stage."""
        self.may_fail: set[str] = set()
        """Tasks of members that their stage can do without."""

    async def submit_all(self) -> None:
        """Returns when every task has been submitted and has ended."""
        for stage in self._run.plan.stages:
            self._submit(stage)
            if stage.approve:
                await self._have_approved(stage)
        await self._ended()

    async def _ended(self) -> None:
        await asyncio.to_thread(wait, list(self.steps.values()))

    def _submit(self, stage: StagePlan) -> None:
        inputs = {source: self._outputs[source] for source in stage.inputs}
        if self._is_reused(stage):
            names = [f"{stage.id}: {call.member}" for call in stage.calls]
            members = [self._submit_reused(name, stage, inputs) for name in names if self._has(stage, name)]
        else:
            name = f"preflight: {stage.id}"
            admission = preflight.with_options(name=name, task_run_name=name).submit(self._run, stage, inputs)  # type: ignore[arg-type]
            self.steps[name] = admission
            members = []
            for call in stage.calls:
                members.append(self._submit_call(stage, call, admission, inputs, members))
        self._outputs[stage.id] = members[0]
        if stage.aggregation:
            self._outputs[stage.id] = self._submit_aggregation(stage, stage.aggregation.kind, members, inputs)

    def _is_reused(self, stage: StagePlan) -> bool:
        """Whether no model of this stage has anything to do in this rerun."""
        if stage.aggregation and self._has(stage, f"{stage.id}: {stage.aggregation.kind}"):
            return True  # a member without an answer has none
        asks_more = stage.aggregation and (stage.aggregation.synthesis or stage.aggregation.kind == "ranked")
        return not asks_more and all(self._has(stage, f"{stage.id}: {call.member}") for call in stage.calls)

    def _has(self, stage: StagePlan, name: str) -> bool:
        """Whether a step is reused."""
        return f"{stage.number} {name}" in self._run.session.record.reused

    def _submit_reused(self, name: str, stage: StagePlan, inputs: dict[str, StepFuture]) -> StepFuture:
        carried = reuse.with_options(name=name, task_run_name=name)
        future: StepFuture = carried.submit(self._run, f"{stage.number} {name}", inputs)  # type: ignore[arg-type]
        self.steps[name] = future
        return future

    def _submit_call(
        self,
        stage: StagePlan,
        call: Call,
        admission: PrefectFuture[Admission],
        inputs: dict[str, StepFuture],
        before: list[StepFuture],
    ) -> StepFuture:
        name = f"{stage.id}: {call.member}"
        if self._has(stage, name):
            return self._submit_reused(name, stage, inputs)
        if stage.may_miss:
            self.may_fail.add(name)
        task: Any = generate_if_needed if stage.stop else generate
        tags = {f"provider:{call.remote.provider}"} if call.remote else set()
        named = task.with_options(name=name, task_run_name=name, retries=stage.retries, tags=tags)
        heard = (_given(stage, before),) if stage.stop else ()
        future: StepFuture = named.submit(self._run, stage, call, self._question, admission, inputs, *heard)
        self.steps[name] = future
        return future

    def _submit_aggregation(
        self, stage: StagePlan, kind: str, members: list[StepFuture], inputs: dict[str, StepFuture]
    ) -> StepFuture:
        name = f"{stage.id}: {kind}"
        if self._has(stage, name):
            return self._submit_reused(name, stage, {f"member {n}": member for n, member in enumerate(members)})
        merge = aggregate.with_options(name=name, task_run_name=name, retries=stage.retries)
        future: StepFuture = merge.submit(self._run, stage, self._question, _given(stage, members), inputs)  # type: ignore[arg-type]
        self.steps[name] = future
        return future

    async def _have_approved(self, stage: StagePlan) -> None:
        """Wait for a person, once all that can run before has run; a run that has failed already asks nobody."""
        await self._ended()
        answered = self._outputs[stage.id]
        needed = (future for name, future in self.steps.items() if name not in self.may_fail)
        if not all(future.state.is_completed() for future in needed):
            return
        answer: StepRecord = await asyncio.to_thread(answered.result)
        name = f"{stage.id}: approval"
        if self._has(stage, name):
            self._outputs[stage.id] = self._submit_reused(name, stage, {stage.id: answered})
            return
        earlier = self._approved_before(name, stage, answer)
        text = earlier.text if earlier else await approved_text(stage, answer.text)
        task = approve.with_options(name=name, task_run_name=name)
        inputs = {source: self._outputs[source] for source in stage.inputs}
        approved = task.submit(self._run, stage, self._question, answered, text, inputs)  # type: ignore[call-overload]
        self._outputs[stage.id] = self.steps[name] = approved

    def _approved_before(self, name: str, stage: StagePlan, answer: StepRecord) -> StepRecord | None:
        """What a person made of this very answer in an earlier try of the flow run."""
        session = self._run.session
        step_id = f"{stage.number} {name}"
        if step_id not in session.record.files:
            return None
        approval = load_step(session.path.parent, session.record, step_id)
        return approval if approval.started >= answer.ended else None


def _given(stage: StagePlan, members: list[StepFuture]) -> list[Any]:
    """`members` for a task that waits for them; where the stage may miss some, their errors are no end of it."""
    return [allow_failure(member) for member in members] if stage.may_miss else list(members)
