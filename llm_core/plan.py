"""What will run: every stage, every call, every parameter resolved; frozen."""

from collections.abc import Iterator
from dataclasses import dataclass

from llm_core.call_params import Constraint, LoadParams, SamplingParams
from llm_core.cascade import StopRule
from llm_core.providers.registry import RemoteModel


@dataclass(frozen=True)
class Call:
    """One model answering in one stage, every parameter resolved."""

    member: str
    """Unique in its stage: the model's name, `name_2` for its second appearance."""
    model: str
    load: LoadParams | None
    """As it would be on the CPU; residency decides on device and layers. `None`: a remote model."""
    sampling: SamplingParams
    remote: RemoteModel | None = None
    chosen: tuple[str, ...] = ()
    """Of `sampling`, what a remote model is told."""
    n_gpu_layers: int | None = None
    """As asked for; `None`: as many as fit, -1: all."""
    n_layers: int = 0
    """Layers there are, the output layer included."""
    threads: int | None = None
    """At most; `None`: what the cores allow."""
    system_prompt: str | None = None
    instructions: str | None = None
    strip_reasoning: bool = False
    cache: bool = False
    """Whether an identical call of an earlier session may answer it."""
    constraint: Constraint | None = None
    fallback: tuple["Call", ...] = ()
    """Who is asked, one after another, where this model gives no answer."""


@dataclass(frozen=True)
class AggregationPlan:
    kind: str
    template: str | None = None
    synthesis: Call | None = None
    """The model that writes the answer, or that judges."""
    instructions: str | None = None
    """Of members that rank each other's answers."""
    weights: tuple[tuple[str, float], ...] = ()
    """Of votes, by member."""
    pattern: str | None = None
    summarise: bool = False
    """Whether candidates that do not fit together are summarised for the synthesis."""
    stop: StopRule | None = None
    """Of a cascade, whose members are asked one after another."""


@dataclass(frozen=True)
class StagePlan:
    id: str
    number: int
    """Position in the order of execution, from 1."""
    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    output_mode: str
    aggregation: AggregationPlan | None
    retries: int
    approve: bool = False
    """Whether the run waits for a person after this stage."""
    quorum: int = 1
    """So many members must answer for the stage to go on."""
    quorum_wait_s: float | None = None
    """How long the others are waited for then; `None`: until they end."""
    layer_of: str | None = None
    """The stage that this is an earlier layer of."""
    layer_before: str | None = None
    """Of the inputs, the layer whose answers the members see; the stage hands nothing of it on."""
    images: tuple[str, ...] = ()
    """What its members look at: `question`, paths and URLs."""

    @property
    def asked(self) -> tuple[Call, ...]:
        """The members, and the model that writes or judges."""
        synthesis = self.aggregation.synthesis if self.aggregation else None
        return (*self.calls, synthesis) if synthesis else self.calls

    @property
    def local(self) -> tuple[Call, ...]:
        """The members whose models need memory."""
        return tuple(call for call in self.calls if call.load)

    @property
    def may_miss(self) -> bool:
        """Whether a member's failure may be none of the stage."""
        return self.quorum < len(self.calls)

    @property
    def stop(self) -> StopRule | None:
        """When no further member is asked; `None`: all are asked, at one time."""
        return self.aggregation.stop if self.aggregation else None

    @property
    def surely_asked(self) -> tuple[Call, ...]:
        """The members that are asked whatever others answer."""
        return self.calls[: self.stop.at_least] if self.stop else self.calls


@dataclass(frozen=True)
class Plan:
    """Stages in an order in which each follows its inputs."""

    pipeline: str
    execution_mode: str
    stages: tuple[StagePlan, ...]
    on_insufficient_memory: str
    final: str
    """The stage whose answer is the pipeline's: the last written of those that nothing reads."""

    @property
    def calls(self) -> Iterator[Call]:
        for stage in self.stages:
            yield from stage.asked

    @property
    def every_call(self) -> Iterator[Call]:
        """Those too that are made only where another fails."""
        for call in self.calls:
            yield from (call, *call.fallback)
