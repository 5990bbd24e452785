"""`gguf-flow models`: what is here, what is loaded, and fetching what is not."""

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from flows.console import say, stderr, stdout
from flows.models_table import human_bytes, models_table, status_table
from llm_core.documents import load_document, near_name
from llm_core.errors import InputError, ModelFileError, PullError
from llm_core.gguf_file import read_gguf
from llm_core.memory import MemoryEstimates
from llm_core.registry import ModelEntry, ModelsDocument, load_registry, mmproj_path, model_path, models_directory
from llm_core.settings import Settings
from llm_core.status_board import read_board

models = App(name="models", help="The models of models.yaml.")


@models.default
def list_models(*, status: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Show every model of models.yaml and whether it can be used.

    Parameters
    ----------
    status
        Show what is loaded on this machine now instead.
    """
    settings = Settings()
    if status:
        rows = read_board(settings.cache_folder)
        if rows:
            stdout.print(status_table(rows))
        else:
            say("no model is loaded now")
        return
    logging.getLogger("llm_core.registry").setLevel(logging.ERROR)  # the table says it already
    registry = load_registry(settings)
    stdout.print(models_table(registry, MemoryEstimates(settings.cache_folder)))
    say(f"in {registry.models_dir}")


@models.command(name="pull")
def pull_models(*names: str) -> None:
    """Fetch models from their `source`, all of them or those named.

    Parameters
    ----------
    names
        Models of models.yaml.
    """
    settings = Settings()
    document = load_document(settings.models_file, ModelsDocument)
    for name in names:
        if name not in document.models:
            raise InputError(f"{settings.models_file}: no model '{name}'{near_name(name, document.models)}")
    folder = models_directory(document, settings)
    wanted = names or [name for name, entry in document.models.items() if entry.source]
    for name in wanted:
        _pull_one(name, document.models[name], folder)


def _pull_one(name: str, entry: ModelEntry, folder: Path) -> None:
    """The model's file, and that of its projector."""
    if entry.file is None:
        raise PullError(f"model '{name}' is remote; there is nothing to pull")
    _pull_file(name, "source", entry.source, entry.sha256, model_path(folder, name, entry))
    if projector := mmproj_path(folder, name, entry):
        _pull_file(name, "mmproj_source", entry.mmproj_source, entry.mmproj_sha256, projector)


def _pull_file(name: str, key: str, source: str | None, sha256: str | None, target: Path) -> None:
    from llm_core.pull import pull

    if _is_model(target):
        say(f"{name}: is here already: {target}")
        return
    if source is None:
        raise PullError(f"model '{name}' has no '{key}'; put its file at {target}")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=stderr) as progress:
        row = progress.add_task(name, total=None)
        digest = pull(
            name,
            source,
            sha256,
            target,
            lambda done, size: progress.update(row, completed=done, total=size),
        )
    say(f"{name}: {target} ({human_bytes(target.stat().st_size)}, sha256 {digest})")


def _is_model(path: Path) -> bool:
    try:
        read_gguf(path)
    except ModelFileError:
        return False
    return True
