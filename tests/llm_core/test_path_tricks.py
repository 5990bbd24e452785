"""Names that would lead out of their folder: refused, or made harmless; nothing outside is read or changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_core.errors import ConfigError, InputError, ModelFileError, SessionError
from llm_core.gguf_file import read_gguf
from llm_core.image_sources import ImageSources
from llm_core.parameters import ModelParams
from llm_core.registry import ModelEntry, ModelRegistry, model_path
from llm_core.rerun import Changes, plan_rerun
from llm_core.session import Session, step_files
from llm_core.session_files import list_sessions, load_session, load_step, load_steps
from llm_core.session_history import delete_session
from llm_core.session_records import SessionRecord
from llm_core.snapshot import load_snapshot
from tests.llm_core.pictures import png
from tests.llm_core.test_session import create, ids, step

IDS = [
    "../outside",
    "../sessions/session_001",
    "/etc",
    "session_001/../../outside",
    "session_001\0",
    "\0",
    "..",
    "session_" + "9" * 300,
    "x" * 5000,
    "session_١",
]
FILES = [
    "../outside/step1.json",
    "/etc/hostname",
    "a/b.json",
    "..\\b.json",
    "..",
    ".",
    "",
    "a\0b",
    "x" * 256,
    "ä" * 128,
]
MODELS = sorted({*IDS, *FILES})


def rerun_of(folder: Path, id: str) -> object:
    today = ModelRegistry(folder / "models.yaml", folder, ModelParams())
    return plan_rerun(folder, id, "draft", Changes(), today, folder / "cache")


ACTIONS: list[Callable[[Path, str], object]] = [
    load_session,
    load_snapshot,
    Session.reopen,
    rerun_of,
    delete_session,
    lambda folder, id: delete_session(folder, id, force=True),
]


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """A folder with session_001, and a folder beside it that looks like a session."""
    folder = tmp_path / "sessions"
    session = create(folder)
    session.add(step("draft"), "step1.json")
    session.complete("So.")
    (tmp_path / "outside").mkdir()
    for path in session.path.iterdir():
        (tmp_path / "outside" / path.name).write_bytes(path.read_bytes())
    return folder


def with_file(folder: Path, name: str) -> None:
    """Make the record of session_001 say that its step lies at `name`."""
    path = folder / "session_001" / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": {"1 draft: m0": name}}))


@pytest.mark.parametrize("id", IDS, ids=lambda id: repr(id)[:30])
@pytest.mark.parametrize("action", ACTIONS)
def test_id_that_leads_elsewhere_is_no_session(sessions: Path, action: Callable[[Path, str], object], id: str) -> None:
    before = everything(sessions.parent)
    with pytest.raises(SessionError) as refusal:
        action(sessions, id)
    assert str(refusal.value) == f"no session '{id}' in {sessions}; `gguf-flow sessions` lists them"
    assert everything(sessions.parent) == before


@pytest.mark.parametrize("name", FILES, ids=lambda name: repr(name)[:30])
def test_session_whose_record_names_a_file_elsewhere_is_damaged(sessions: Path, name: str) -> None:
    create(sessions)
    with_file(sessions, name)
    before = everything(sessions.parent)
    damaged, sound = list_sessions(sessions)
    said = f"{sessions}/session_001/session.json: damaged: files.1 draft: m0: {name[:60]!r} is no plain file name"
    assert str(damaged) == said
    assert isinstance(sound, SessionRecord)
    for action in (load_session, Session.reopen, rerun_of, delete_session):
        with pytest.raises(SessionError) as refusal:
            action(sessions, "session_001")  # type: ignore[operator]
        assert str(refusal.value) == said
    assert everything(sessions.parent) == before


def test_session_whose_record_names_a_file_elsewhere_can_be_deleted_by_force(sessions: Path) -> None:
    with_file(sessions, "../outside/step1.json")
    before = everything(sessions.parent / "outside")
    delete_session(sessions, "session_001", force=True)
    assert ids(sessions) == []
    assert everything(sessions.parent / "outside") == before


@pytest.mark.parametrize("name", ["step1.json", "step3_qwen_3_4b_2.json", "..step.json", "x" * 255])
def test_plain_file_name_is_taken_as_it_is(sessions: Path, name: str) -> None:
    (sessions / "session_001" / "step1.json").rename(sessions / "session_001" / name)
    with_file(sessions, name)
    record = load_session(sessions, "session_001")
    assert load_step(sessions, record, "1 draft: m0").text == "So."


def test_session_that_is_a_link_is_read_and_never_written(sessions: Path) -> None:
    (sessions / "session_002").symlink_to(sessions.parent / "outside")
    before = everything(sessions.parent)
    assert [step.text for step in load_steps(sessions, load_session(sessions, "session_002"))] == ["So."]
    with pytest.raises(SessionError, match="session_002 is a link; nothing is written through it"):
        Session.reopen(sessions, "session_002")
    with pytest.raises(SessionError, match="session_002 is a link; remove it by hand"):
        delete_session(sessions, "session_002", force=True)
    assert everything(sessions.parent) == before
    assert create(sessions).record.id == "session_003"


def test_session_with_a_link_in_it_does_not_go_on(sessions: Path) -> None:
    (sessions / "session_001" / "step2.jsonl").symlink_to(sessions.parent / "outside" / "final.txt")
    before = everything(sessions.parent)
    with pytest.raises(SessionError, match=r"session_001/step2\.jsonl is a link; nothing is written through it"):
        Session.reopen(sessions, "session_001")
    assert everything(sessions.parent) == before


def test_deleting_a_session_leaves_what_links_in_it_point_to(sessions: Path) -> None:
    (sessions / "session_001" / "away").symlink_to(sessions.parent / "outside")
    (sessions / "session_001" / "final").symlink_to(sessions.parent / "outside" / "final.txt")
    before = everything(sessions.parent / "outside")
    delete_session(sessions, "session_001")
    assert ids(sessions) == []
    assert everything(sessions.parent / "outside") == before


def test_every_model_name_becomes_a_plain_file_of_its_own(sessions: Path) -> None:
    names = step_files(1, MODELS, aggregated=True).values()
    assert len({name.lower() for name in names}) == len(MODELS) + 1
    session = create(sessions)
    for number, name in enumerate(names):
        session.add(step("panel", position=number), name)
        assert (session.path / name).resolve().parent == session.path
    assert len(load_steps(sessions, load_session(sessions, "session_002"))) == len(MODELS) + 1


@pytest.mark.parametrize("file", ["../a.gguf", "a/../../b.gguf", "a\0.gguf"])
def test_model_whose_file_leads_out_of_the_models_folder_is_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigError, match="model 'a': "):
        model_path(tmp_path, "a", ModelEntry(file=file))


@pytest.mark.parametrize("name", ["a\0.gguf", "x" * 300, "../" * 2000])
def test_model_file_that_can_have_no_such_name_is_one_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelFileError):
        read_gguf(tmp_path / name)


def test_snapshot_that_names_a_model_file_with_a_nul_says_that_the_model_is_gone(sessions: Path) -> None:
    model: dict[str, Any] = {"file": "/a\0.gguf", "size_bytes": 1, "sha256": "0", "entry": {"file": "a.gguf"}}
    pipeline = {"name": "p", "stages": [{"id": "draft", "model": "m"}]}
    path = sessions / "session_001" / "config_snapshot.json"
    path.write_text(json.dumps({"pipeline": pipeline, "models": {"m": model}}))
    assert load_snapshot(sessions, "session_001").gone == {"m": "'/a\\x00.gguf': embedded null byte"}


@pytest.fixture
def pictures(tmp_path: Path) -> ImageSources:
    """A project with links to a real image outside of it."""
    root = tmp_path / "project"
    root.mkdir()
    (tmp_path / "project-2").mkdir()
    for path in (tmp_path / "cat.png", tmp_path / "project-2" / "cat.png", root / "inside.png"):
        path.write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "cat.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "good.png").symlink_to(root / "inside.png")
    return ImageSources(root)


@pytest.mark.parametrize(
    "source",
    [
        "../cat.png",
        "a/../../cat.png",
        "link.png",
        "folder/cat.png",
        "../project-2/cat.png",
        "/etc/hostname",
        "~/a.png",
        "/",
    ],
)
def test_image_outside_the_project_folder_is_refused_by_where_it_really_lies(
    pictures: ImageSources, source: str
) -> None:
    with pytest.raises(InputError) as refusal:
        pictures.load(source)
    assert str(refusal.value).startswith(f"image {source}: /")
    assert str(refusal.value).endswith(" lies outside the project folder; add its folder to GGUF_FLOW_IMAGE_FOLDERS")
    with pytest.raises(InputError):
        pictures.check(source)


@pytest.mark.parametrize("source", ["", ".", "a\0.png", "x" * 300, "~nobody-of-that-name/a.png", "file:/etc/passwd"])
def test_image_path_that_can_have_no_file_is_one_error(pictures: ImageSources, source: str) -> None:
    with pytest.raises(InputError) as refusal:
        pictures.load(source)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("source", ["inside.png", "good.png", "../project/inside.png", "folder/project/inside.png"])
def test_image_that_lies_in_the_project_folder_is_read_whatever_leads_there(
    pictures: ImageSources, source: str
) -> None:
    assert pictures.load(source).data == png()


def test_pipe_in_the_project_folder_is_not_waited_for(pictures: ImageSources) -> None:
    os.mkfifo(pictures.root / "pipe.png")
    with pytest.raises(InputError, match=r"image pipe\.png: no such file"):
        pictures.load("pipe.png")


@pytest.mark.parametrize(
    "image",
    [
        {"source": "a", "sha256": "../../../../outside/step1", "media_type": "image/png"},
        {"source": "a", "sha256": "0" * 64 + "\n", "media_type": "image/png"},
        {"source": "a", "sha256": "0" * 64, "media_type": "../../a"},
    ],
)
def test_session_whose_record_names_an_image_elsewhere_is_damaged(sessions: Path, image: dict[str, str]) -> None:
    path = sessions / "session_001" / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": {"question": [image]}}))
    with pytest.raises(SessionError, match=r"session\.json: damaged: images\.question\[0\]\."):
        load_session(sessions, "session_001")
