"""A run of `gguf-flow serve` that waits for a person: suspended, resumed, and tried again after that."""

import json

from tests.deployments.served import Served


def test_suspended_run_goes_on_in_its_session_and_asks_once_however_often_it_is_tried(served: Served) -> None:
    run_id = served.start("reviewed", question="Name a colour.")
    served.wait_for(lambda: served.state_of(run_id)["state_name"] == "Suspended")
    session = served.session_of(run_id)
    draft = (session / "step1.json").read_bytes()
    served.api.post(f"/flow_runs/{run_id}/resume", json={"run_input": {"text": "Ultramarine."}})
    served.wait_for(lambda: "draft: approval" in dict(served.tasks(run_id)) and served.decoding())
    served.kill_models()
    assert served.ended(run_id)["state_type"] == "FAILED"
    assert served.session_of(run_id) == session

    served.set_state(run_id, "SCHEDULED", "AwaitingRetry")
    served.wait_for(lambda: served.state_of(run_id)["run_count"] == 2)
    assert served.ended(run_id)["state_type"] == "COMPLETED", served.said
    assert served.session_of(run_id) == session
    record = json.loads((session / "session.json").read_text())
    assert record["status"] == "completed"
    assert list(record["files"]) == ["1 draft: small", "1 draft: approval", "2 final: small"]
    assert (session / "step1.json").read_bytes() == draft
    assert "Ultramarine." in json.loads((session / "step2.json").read_text())["prompt"]
