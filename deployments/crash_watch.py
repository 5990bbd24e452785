"""A run whose process went with `serve` and all shows as crashed, not as running for ever."""

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture

SILENCE_S = 90
"""A run that gave no sign of life for so long is gone; it gives one every 30 s. One that waits for a person is silent
too, and expected to be."""
NAME = "gguf-flow: runs whose process is gone"
_SETTLED = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Paused", "Suspended", "Scheduled")
_BEAT = "prefect.flow-run.heartbeat"


async def watch_for_crashes() -> None:
    """Have the Prefect server set such runs to crashed; it does so while `serve` is down, too."""
    async with get_client() as client:
        if await client.read_automations_by_name(NAME):
            return
    silent = EventTrigger(
        match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]
        match_related={"prefect.resource.id": "prefect.tag.gguf-flow", "prefect.resource.role": "tag"},  # type: ignore[arg-type]
        for_each={"prefect.resource.id"},
        after={_BEAT},
        expect={_BEAT, *(f"prefect.flow-run.{state}" for state in _SETTLED)},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_S),
    )
    crashed = ChangeFlowRunState(state=StateType.CRASHED, message=f"no sign of life from its process for {SILENCE_S} s")
    await Automation(name=NAME, trigger=silent, actions=[crashed]).acreate()
