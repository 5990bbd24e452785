"""Which run over a dataset `resume` goes on with, and whether it still can."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llm_core.dataset import Item, row_images
from llm_core.errors import InputError, SessionError
from llm_core.fingerprint import sha256
from llm_core.pipeline import PipelineSpec
from llm_core.run_images import check_images, looks_at_question
from llm_core.session_files import list_sessions
from llm_core.session_records import SessionRecord
from llm_core.settings import Settings
from llm_core.snapshot import as_saved, file_digests, read_snapshot


def refuse_approval(spec: PipelineSpec) -> None:
    """Refuse a pipeline that waits for a person.

    Raises:
        InputError: it has a stage to approve.
    """
    for stage in spec.stages:
        if stage.approve:
            raise InputError(f"stage '{stage.id}' of '{spec.name}' has approve: true; a dataset run can ask nobody")


def check_dataset_images(spec: PipelineSpec, items: Iterable[Item], dataset: Path, settings: Settings) -> None:
    """Refuse a pipeline that names an image which may not be read, and rows whose images are no paths.

    Raises:
        InputError: one line; of a row's images themselves, each is the row's own affair.
    """
    check_images(spec, (), settings.image_sources)
    if looks_at_question(spec):
        for item in items:
            row_images(item, dataset)


def output_file(output: Path | None, *, is_new: bool) -> None:
    """Refuse an output that would overwrite a file, or cannot be written.

    Raises:
        InputError: one line, with what to do.
    """
    if output is None:
        return
    if is_new and output.exists():
        raise InputError(f"{output} exists; remove it, name another, or go on with --resume")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output}: the folder {output.absolute().parent} does not exist")


def unfinished_session(settings: Settings, dataset: Path, pipeline: str) -> SessionRecord:
    """The latest run of `pipeline` over `dataset` that did not come to its end.

    Raises:
        SessionError: there is none, or the dataset has changed since.
    """
    found = [
        record
        for record in list_sessions(settings.sessions_folder)
        if isinstance(record, SessionRecord) and record.dataset and record.dataset.path == dataset.absolute()
        if record.pipeline == pipeline and record.status != "completed"
    ]
    if not found:
        raise SessionError(f"no unfinished run of '{pipeline}' over {dataset}; start one without --resume")
    latest = found[-1]
    if latest.dataset and latest.dataset.sha256 != sha256(dataset.absolute(), settings.cache_folder):
        raise SessionError(f"{dataset} has changed since {latest.id} began; start anew without --resume")
    return latest


def find_unfinished(
    settings: Settings, dataset: Path, spec: PipelineSpec, snapshot: dict[str, Any], output: Path | None
) -> SessionRecord:
    """`unfinished_session`, if pipeline and models are still what they were.

    Raises:
        SessionError: what has changed; answers of two kinds in one file help nobody.
    """
    record = unfinished_session(settings, dataset, spec.name)
    assert record.dataset
    if output and output.absolute() != record.dataset.output:
        raise SessionError(f"{record.id} writes to {record.dataset.output or 'its own folder'}, not to {output}")
    before = read_snapshot(settings.sessions_folder, record.id)
    now = as_saved(snapshot)
    if before["pipeline"] != now["pipeline"]:
        raise SessionError(f"pipeline '{spec.name}' was edited since {record.id} began; start anew without --resume")
    for name, model in now["models"].items():
        then = before["models"].get(name, {})
        # A remote model has no file; it is what models.yaml says of it.
        if file_digests(then) != file_digests(model) or ("sha256" not in model and then != model):
            raise SessionError(f"model '{name}' has changed since {record.id} began; start anew without --resume")
    return record
