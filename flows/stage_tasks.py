"""The stages of a plan as Prefect tasks: futures passed from one to the next draw the graph."""

import asyncio

from prefect.futures import PrefectFuture, wait

from flows.approval import approved_text
from flows.outcome import StepFuture
from llm_core.plan import StagePlan
from llm_core.session_records import StepRecord
from tasks.aggregate import aggregate
from tasks.approve import approve
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
            members = [self._submit_reused(f"{stage.id}: {call.member}", stage, inputs) for call in stage.calls]
        else:
            name = f"preflight: {stage.id}"
            admission = preflight.with_options(name=name, task_run_name=name).submit(self._run, stage, inputs)  # type: ignore[arg-type]
            self.steps[name] = admission
            members = [self._submit_call(stage, index, admission, inputs) for index in range(len(stage.calls))]
        self._outputs[stage.id] = members[0]
        if stage.aggregation:
            self._outputs[stage.id] = self._submit_aggregation(stage, stage.aggregation.kind, members, inputs)

    def _is_reused(self, stage: StagePlan) -> bool:
        """Whether no model of this stage has anything to do in this rerun."""
        names = [f"{stage.id}: {call.member}" for call in stage.calls]
        if stage.aggregation and stage.aggregation.synthesis:
            names.append(f"{stage.id}: {stage.aggregation.kind}")
        return all(f"{stage.number} {name}" in self._run.session.record.reused for name in names)

    def _submit_reused(self, name: str, stage: StagePlan, inputs: dict[str, StepFuture]) -> StepFuture:
        carried = reuse.with_options(name=name, task_run_name=name)
        future: StepFuture = carried.submit(self._run, f"{stage.number} {name}", inputs)  # type: ignore[arg-type]
        self.steps[name] = future
        return future

    def _submit_call(
        self, stage: StagePlan, index: int, admission: PrefectFuture[Admission], inputs: dict[str, StepFuture]
    ) -> StepFuture:
        call = stage.calls[index]
        name = f"{stage.id}: {call.member}"
        if f"{stage.number} {name}" in self._run.session.record.reused:
            return self._submit_reused(name, stage, inputs)
        named = generate.with_options(name=name, task_run_name=name, retries=stage.retries)
        future: StepFuture = named.submit(self._run, stage, call, self._question, admission, inputs)  # type: ignore[call-overload]
        self.steps[name] = future
        return future

    def _submit_aggregation(
        self, stage: StagePlan, kind: str, members: list[StepFuture], inputs: dict[str, StepFuture]
    ) -> StepFuture:
        name = f"{stage.id}: {kind}"
        if f"{stage.number} {name}" in self._run.session.record.reused:
            return self._submit_reused(name, stage, {f"member {n}": member for n, member in enumerate(members)})
        merge = aggregate.with_options(name=name, task_run_name=name, retries=stage.retries)
        future: StepFuture = merge.submit(self._run, stage, self._question, members, inputs)  # type: ignore[arg-type]
        self.steps[name] = future
        return future

    async def _have_approved(self, stage: StagePlan) -> None:
        """Wait for a person, once all that can run before has run; a run that has failed already asks nobody."""
        await self._ended()
        answered = self._outputs[stage.id]
        if not all(future.state.is_completed() for future in self.steps.values()):
            return
        answer: StepRecord = await asyncio.to_thread(answered.result)
        name = f"{stage.id}: approval"
        if f"{stage.number} {name}" in self._run.session.record.reused:
            self._outputs[stage.id] = self._submit_reused(name, stage, {stage.id: answered})
            return
        text = await approved_text(stage, answer.text)
        task = approve.with_options(name=name, task_run_name=name)
        inputs = {source: self._outputs[source] for source in stage.inputs}
        approved = task.submit(self._run, stage, self._question, answered, text, inputs)  # type: ignore[call-overload]
        self._outputs[stage.id] = self.steps[name] = approved
