"""One session as a file to give away: a Markdown report, or a zip of its folder."""

import os
import tempfile
import zipfile
from pathlib import Path

from llm_core.atomic_write import write_whole
from llm_core.errors import InputError
from llm_core.session_files import load_final, load_session, load_steps
from llm_core.session_images import kept_files
from llm_core.session_report import session_markdown

SUFFIXES = (".md", ".zip")


def export_session(folder: Path, session_id: str, target: Path) -> None:
    """Write the report, or the zip with the report in it, as `target`'s suffix says.

    Raises:
        SessionError: the session cannot be read.
        InputError: `target` has another suffix, is there already, or cannot be written.
    """
    session = load_session(folder, session_id)
    report = session_markdown(session, load_steps(folder, session), load_final(folder, session))
    if target.suffix not in SUFFIXES:
        raise InputError(f"{target}: a session is exported as .md or .zip")
    if target.exists():
        raise InputError(f"{target} is there already; choose another name with --output")
    try:
        if target.suffix == ".md":
            write_whole(target, report)
        else:
            _write_zip(target, folder / session_id, report)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from None


def _write_zip(target: Path, session: Path, report: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:50]}.")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{session.name}/report.md", report)
            for path in sorted(session.iterdir()):
                if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                    archive.write(path, f"{session.name}/{path.name}")
            for path in kept_files(session):
                archive.write(path, f"{session.name}/{path.relative_to(session)}", zipfile.ZIP_STORED)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
