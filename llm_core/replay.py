"""Does a session's every answer come again? Each step is asked once more, from what it was given then."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from llm_core.call_params import Constraint, LoadParams, SamplingParams
from llm_core.errors import ContextOverflow, GgufFlowError
from llm_core.images import Image
from llm_core.merge import merged
from llm_core.model_step import input_texts, record_of, request_of
from llm_core.plan import Call, Plan, StagePlan
from llm_core.pool_protocol import Pool
from llm_core.prompts import user_message
from llm_core.session_images import kept_image
from llm_core.session_records import SessionRecord, StepRecord
from llm_core.snapshot import Snapshot

Outcome = Literal["identical", "differs", "unchecked"]
_HOW_IT_RUNS = {"deterministic", "prompt_lookup", "timeout_s"}
"""Parameters that a replay sets itself, or that decide no token."""


@dataclass(frozen=True)
class Verdict:
    """Of one step. `token`: the first that differs, from 1; `None` where none does, or the session kept no tokens."""

    step: str
    outcome: Outcome
    reason: str = ""
    token: int | None = None
    build: str | None = None
    """Of llama.cpp, now."""


class Replay:
    """Goes through a session's steps in order. Every step reads the recorded answers, so one that differs makes no
    other differ.

    Args:
        steps: of the session.
        plan: of its snapshot.
        cache: where SHA-256 are remembered.
        begin: told the name of each step that a model is asked for.
    """

    def __init__(
        self,
        session: SessionRecord,
        steps: list[StepRecord],
        snapshot: Snapshot,
        plan: Plan,
        pool: Pool,
        cache: Path,
        begin: Callable[[str], None],
    ) -> None:
        self._session, self._snapshot, self._plan, self._pool = session, snapshot, plan, pool
        self._steps = {step.id: step for step in steps}
        self._last = {step.stage: step for step in steps}
        self._cache, self._begin = cache, begin

    def verdicts(self) -> Iterator[Verdict]:
        """One for each step of the session, as they are found."""
        told = set()
        for stage in self._plan.stages:
            for verdict in self._of_stage(stage):
                told.add(verdict.step)
                yield verdict
        for step in self._steps.values():
            if step.kind == "approval":
                yield Verdict(step.id, "unchecked", "a person's")
            elif step.id not in told:
                yield Verdict(step.id, "unchecked", "not in the snapshot")

    def _of_stage(self, stage: StagePlan) -> Iterator[Verdict]:
        texts = input_texts({source: self._last[source] for source in stage.inputs if source in self._last})
        if len(texts) < len(stage.inputs):
            return  # the run did not come so far
        for call in stage.calls:
            name = f"{stage.id}: {call.member}"
            message = user_message(self._session.question, texts, call.instructions)
            yield from self._of_model(stage, call, name, message)
        if stage.aggregation:
            yield from self._of_aggregation(stage, stage.aggregation.kind, texts)

    def _of_aggregation(self, stage: StagePlan, kind: str, texts: Mapping[str, str]) -> Iterator[Verdict]:
        step_id = f"{stage.number} {stage.id}: {kind}"
        members = [self._steps.get(f"{stage.number} {stage.id}: {call.member}") for call in stage.calls]
        known = [member for member in members if member]
        recorded = self._steps.get(step_id)
        if recorded is None or not known:
            return
        asked: list[Verdict] = []
        replies: Mapping[str, str] = (recorded.aggregation or {}).get("replies", {})

        def ask(call: Call, name: str, message: str, constraint: Constraint | None) -> StepRecord:
            """What was said on the way is taken as it was; who gave the answer is asked again."""
            if f"{stage.number} {name}" == step_id:
                asked.extend(self._of_model(stage, replace(call, constraint=constraint), name, message))
            return recorded.model_copy(update={"text": replies.get(name, recorded.text)})

        try:
            again = merged(stage, self._session.question, known, texts, ask)
        except GgufFlowError as error:
            yield Verdict(step_id, "differs", str(error))
            return
        if again.text != recorded.text and not asked:
            yield Verdict(step_id, "differs", "merged otherwise")
        elif replies and not asked:
            yield Verdict(step_id, "unchecked", "the members' rankings are taken as they were")
        else:
            yield from asked or [Verdict(step_id, "identical")]

    def _of_model(self, stage: StagePlan, call: Call, name: str, message: str) -> Iterator[Verdict]:
        recorded = self._steps.get(f"{stage.number} {name}")
        if recorded is None:
            return
        call = next((asked for asked in (call, *call.fallback) if asked.model == recorded.model), call)
        if call.remote:
            yield Verdict(recorded.id, "unchecked", f"remote: {call.remote.provider}")
            return
        problem = self._snapshot.problem(call.model, self._cache)
        if problem:
            yield Verdict(recorded.id, "unchecked", problem)
            return
        self._begin(recorded.id)
        try:
            images = tuple(kept_image(self._snapshot.path.parent, ref) for ref in recorded.images)
            again = self._ask(stage, call, name, message, recorded, images)
        except ContextOverflow as error:
            if stage.aggregation and stage.aggregation.summarise:
                raise  # then summaries are merged, as they were
            yield Verdict(recorded.id, "unchecked", str(error))
            return
        except GgufFlowError as error:
            yield Verdict(recorded.id, "unchecked", str(error))
            return
        yield _compared(recorded, again)

    def _ask(
        self,
        stage: StagePlan,
        call: Call,
        name: str,
        message: str,
        recorded: StepRecord,
        images: tuple[Image, ...],
    ) -> StepRecord:
        """With the seed, on the device and with the threads of then; alone."""
        then = recorded.parameters
        seed = recorded.seed if call.sampling.seed is None else call.sampling.seed
        placed = {key: then[key] for key in ("gpu", "n_gpu_layers", "sequences") if key in then}
        assert call.load
        load: LoadParams = replace(call.load, **placed)
        threads = then.get("threads", 1)
        sampling = replace(call.sampling, seed=seed, deterministic=True, prompt_lookup=_looked_up(recorded))
        again = replace(call, sampling=sampling)
        started = datetime.now(UTC)
        result = self._pool.generate(load, call.model, request_of(again, message, threads, threads, images))
        return record_of(stage, again, name, load, threads, result, started)


def _compared(recorded: StepRecord, again: StepRecord) -> Verdict:
    changes = _changes(recorded, again)
    # Of a judge the text is the answer that it chose; its own words are the tokens.
    same = recorded.text == again.text if recorded.tokens is None else recorded.tokens == again.tokens
    if same and not changes:
        return Verdict(recorded.id, "identical", build=again.build)
    if same:
        return Verdict(recorded.id, "differs", "; ".join((*changes, "the same answer")), build=again.build)
    token = _first_difference(recorded.tokens, again.tokens) if recorded.tokens and again.tokens else None
    if not changes and not _was_alone(recorded):
        reason = "not deterministic: it was not decoded alone"
        return Verdict(recorded.id, "unchecked", reason, token, again.build)
    return Verdict(recorded.id, "differs", "; ".join(changes), token, again.build)


def _first_difference(then: tuple[int, ...], now: tuple[int, ...]) -> int:
    same = next((n for n, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    return same + 1


def _was_alone(recorded: StepRecord) -> bool:
    deterministic = recorded.parameters.get("deterministic")
    return recorded.parameters.get("temperature") == 0 if deterministic is None else bool(deterministic)


def _looked_up(recorded: StepRecord) -> bool:
    """As then: several tokens are rounded otherwise than one. Sessions from before there was a lookup had none."""
    written = recorded.parameters.get("prompt_lookup", False)
    return not _was_alone(recorded) if written is None else bool(written)


def _changes(recorded: StepRecord, again: StepRecord) -> list[str]:
    """What the snapshot asks for and was not asked for then."""
    said = ["another prompt"] if recorded.prompt != again.prompt else []
    known = {*asdict(SamplingParams()), "n_ctx", "kv_type", "flash_attention"} - _HOW_IT_RUNS
    for name in sorted(known & set(recorded.parameters)):
        then, now = recorded.parameters[name], again.parameters[name]
        if _plain(then) != _plain(now):
            said.append(f"{name} {now}, then {then}")
    return said


def _plain(value: object) -> object:
    """Sequences alike, whether they come from JSON or not."""
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
