"""Whether a dataset run can be gone on with, from what its session says of its models."""

from copy import deepcopy
from typing import Any

import pytest

from flows.resume import find_unfinished
from llm_core.errors import SessionError
from llm_core.fingerprint import sha256
from llm_core.pipeline import load_pipeline
from llm_core.session import Session
from llm_core.session_records import DatasetRef
from llm_core.settings import Settings
from tests.conftest import Project

SNAPSHOT: dict[str, Any] = {
    "format": 1,
    "pipeline": {},
    "models": {"sees": {"sha256": "aa", "mmproj": {"sha256": "bb"}}},
}


def test_projector_that_is_another_file_by_now_is_a_changed_model(project: Project) -> None:
    project.pipeline("base_pipeline: {stages: [{id: look, model: sees}]}")
    path = project.path / "q.jsonl"
    path.write_text('{"question": "What is it?"}\n')
    settings = Settings()
    Session.create(
        settings.sessions_folder,
        pipeline="base",
        question="1 question",
        execution_mode="auto",
        snapshot=SNAPSHOT,
        dataset=DatasetRef(path=path, sha256=sha256(path, settings.cache_folder), n_items=1),
    )
    spec = load_pipeline(settings.pipeline_file)
    assert find_unfinished(settings, path, spec, SNAPSHOT, None).id == "session_001"
    now = deepcopy(SNAPSHOT)
    now["models"]["sees"]["mmproj"]["sha256"] = "cc"
    with pytest.raises(SessionError, match="model 'sees' has changed since session_001 began; start anew"):
        find_unfinished(settings, path, spec, now, None)
