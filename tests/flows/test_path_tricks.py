"""Stages, models and columns with names that would lead elsewhere: a run changes nothing but its session."""

import json
from pathlib import Path

import pytest

from flows.batch import batch
from flows.pipeline import compile_flow
from flows.rerun import rerun
from llm_core.errors import SessionError
from llm_core.pipeline import load_pipeline
from llm_core.session_files import load_session
from llm_core.settings import Settings
from tasks.record import artifact_key
from tests.conftest import Project
from tests.flows.test_cli import assert_refused, gguf_flow

STAGES = ["../../draft", "/etc/passwd", "nul\0", "x" * 100, ".."]
MODELS = ["../../m", "/m", "m\0", "m" * 300]


@pytest.fixture
def tricky_project(project: Project, smollm: Path) -> Project:
    """A single-model stage for each stage name, then one stage of all models. JSON is YAML, too."""
    limits = {"n_ctx": 512, "max_tokens": 2, "temperature": 0.5}
    project.models(json.dumps({"models": {name: {"file": "a.gguf", "overrides": limits} for name in MODELS}}))
    stages = [{"id": id, "model": MODELS[0], "input_from": "question"} for id in STAGES]
    last = {"id": "../last", "models": MODELS, "input_from": "question", "aggregation": "concat"}
    project.pipeline(json.dumps({"base_pipeline": {"stages": [*stages, last]}}))
    project.link_model(smollm, "a.gguf")
    return project


def outside_of_sessions(project: Project) -> dict[str, int]:
    """Everything in the project but its sessions and its cache, each file with its time of change; and what lies beside
    the project, by name alone: other tests' folders are in use.
    """
    own = (project.sessions, project.path / "cache")
    within = [path for path in project.path.rglob("*") if not any(path.is_relative_to(folder) for folder in own)]
    paths = [*within, *(path for path in project.path.parent.iterdir() if path.is_dir())]
    return {str(path): 0 if path.is_dir() else path.lstat().st_mtime_ns for path in paths}


@pytest.mark.usefixtures("prefect_server")
async def test_run_writes_only_plain_files_into_its_session(tricky_project: Project) -> None:
    before = outside_of_sessions(tricky_project)
    result = await compile_flow(load_pipeline(Settings().pipeline_file))(question="../../why")
    again = await rerun("session_001", "../last")
    files = {
        "session.json",
        "config_snapshot.json",
        "final.txt",
        *(f"step{number}.json" for number in range(1, 6)),
        "step6_m.json",
        "step6_m_2.json",
        "step6_m_3.json",
        f"step6_{'m' * 80}.json",
        "step6_aggregation.json",
    }
    for session_path in (result.session_path, again.session_path):
        assert {path.name for path in session_path.iterdir()} == files
    assert [step.stage for step in again.steps[:5]] == STAGES
    assert outside_of_sessions(tricky_project) == before


@pytest.mark.usefixtures("prefect_server")
async def test_columns_of_a_dataset_name_no_file(tricky_project: Project) -> None:
    columns = {"../../x": 1, "/etc/x": 2, "nul\0": 3, "x" * 5000: 4, "": 5}
    (tricky_project.path / "q.jsonl").write_text(json.dumps({"question": "What is ice?", **columns}) + "\n")
    before = outside_of_sessions(tricky_project)
    result = await batch(tricky_project.path / "q.jsonl")
    (row,) = [json.loads(line) for line in result.output.read_text().splitlines()]
    assert {name: value for name, value in row.items() if name not in ("question", "result")} == columns
    assert list(row["result"]["steps"]) == [*STAGES, "../last"]
    assert {path.suffix for path in result.session_path.iterdir()} == {".json", ".jsonl", ".txt"}
    assert outside_of_sessions(tricky_project) == before


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("session", ["../config", "session_001/../../config", "session_001\0", "x" * 5000])
async def test_rerun_of_what_is_no_session_is_refused(tricky_project: Project, session: str) -> None:
    with pytest.raises(SessionError, match="no session "):
        await rerun(session, "../last")


@pytest.mark.parametrize("name", [*STAGES, *MODELS, "..", "模/型", "x" * 5000, "\n"])
def test_artifact_key_has_only_what_prefect_takes(name: str) -> None:
    key = artifact_key("base", name)
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 1 <= len(key) <= 200


@pytest.mark.parametrize(
    "command",
    [
        ["sessions", "show"],
        ["sessions", "delete"],
        ["sessions", "delete", "--force"],
        ["rerun", "--from", "a"],
        ["save"],
    ],
)
@pytest.mark.parametrize("id", ["../models", "x" * 300])
def test_command_that_names_what_is_no_session_is_one_line(project: Project, command: list[str], id: str) -> None:
    project.models("models: {}")
    project.pipeline("base_pipeline: {stages: [{id: a, model: m}]}")
    (project.sessions / "session_001").mkdir()
    before = outside_of_sessions(project)
    assert_refused(gguf_flow(*command, id, *["kept"] * (command == ["save"])), f"no session '{id}' in ")
    assert outside_of_sessions(project) == before
    assert list(project.sessions.iterdir()) == [project.sessions / "session_001"]


def test_crafted_session_is_listed_as_damaged_and_harms_no_other(project: Project) -> None:
    secret = project.path / "secret.json"
    secret.write_text('{"id": "1 a: m", "number": 1, "stage": "a", "text": "planted secret"}')
    record = {"id": "session_001", "pipeline": "base", "question": "Why?", "execution_mode": "auto"}
    for number, file in ((1, "../../secret.json"), (2, str(secret))):
        folder = project.sessions / f"session_00{number}"
        folder.mkdir()
        crafted = record | {"created": "2026-01-01T00:00:00Z", "files": {"1 a: m": file}}
        (folder / "session.json").write_text(json.dumps(crafted))
    sound = project.sessions / "session_003"
    sound.mkdir()
    (sound / "session.json").write_text(json.dumps(record | {"created": "2026-01-01T00:00:00Z"}))
    listed = gguf_flow("sessions")
    assert listed.returncode == 0
    assert [line for line in listed.stdout.splitlines() if line.startswith("session_003")]
    assert len([line for line in listed.stdout.splitlines() if line.startswith("damaged: ")]) == 2
    for id in ("session_001", "session_002"):
        assert_refused(gguf_flow("sessions", "show", id), f"{id}/session.json: damaged: ", "is no plain file name")
    assert load_session(project.sessions, "session_003").question == "Why?"
