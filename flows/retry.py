"""Which session a run writes to: a new one, or that of its earlier try."""

from prefect import runtime
from prefect.context import FlowRunContext

from flows.resources import Resources, say
from llm_core.retry import retry_branch
from llm_core.session import Session
from llm_core.session_files import list_sessions
from llm_core.session_images import Images, kept_images
from llm_core.session_records import Branch, SessionRecord
from llm_core.settings import Settings


def open_session(
    held: Resources, question: str, settings: Settings, branch: Branch | None, images: Images | None
) -> Session:
    """The session of a run; a retry goes on with what its earlier try has finished, as far as that was not edited.

    Args:
        branch: of a rerun.
        images: that the run looks at; `None`: as in its earlier try.

    Raises:
        SessionError: it cannot be written, or that of the earlier try cannot be read.
    """
    earlier = earlier_try(settings)
    if earlier:
        folder = settings.sessions_folder
        branch = retry_branch(folder, earlier, held.plan, held.snapshot["models"])
        if branch is None:
            return Session.reopen(folder, earlier.id, flow_run_id=runtime.flow_run.id)
        images = kept_images(folder / earlier.id, earlier.images) if images is None else images
    session = Session.create(
        settings.sessions_folder,
        pipeline=held.plan.pipeline,
        question=question,
        execution_mode=held.plan.execution_mode,
        snapshot=held.snapshot,
        flow_run_id=runtime.flow_run.id,
        branch=branch,
        images=images,
    )
    if earlier and branch:
        n_kept = len(branch.carried)
        say(f"edited since {earlier.id}: goes on in {session.record.id} with {n_kept} finished steps of it")
    return session


def earlier_try(settings: Settings) -> SessionRecord | None:
    """The session of this flow run's last try, if it is a retry or a suspended run that was resumed."""
    if not _ran_before():
        return None
    flow_run_id = runtime.flow_run.id
    found = None
    for record in list_sessions(settings.sessions_folder):
        if isinstance(record, SessionRecord) and record.flow_run_id == flow_run_id:
            found = record
    return found


def _ran_before() -> bool:
    """Whether this flow run had a process before; Prefect does not count the one that suspended it."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run is not None and (run.run_count > 1 or bool(run.empirical_policy.pause_keys))
