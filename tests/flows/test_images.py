"""Questions about images: from a pipeline or with the question, again, over a dataset. Real model, real server."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import get_current_settings
from pytest_httpserver import HTTPServer

from flows.batch import batch
from flows.models_table import models_table
from flows.pipeline import compile_flow
from flows.replay_command import replay_session
from flows.rerun import StageChange, rerun
from flows.result import PipelineFailed, PipelineResult
from llm_core.errors import InputError, ModelLoadError, PlanError, SessionError
from llm_core.host_pool import HostPool
from llm_core.memory import MemoryEstimates
from llm_core.pipeline import load_pipeline
from llm_core.pool import ModelPool
from llm_core.registry import load_registry
from llm_core.session_diff import diff_sessions
from llm_core.session_files import load_session, load_steps
from llm_core.settings import Settings
from tests.conftest import Project
from tests.flows.test_cli import assert_refused, gguf_flow
from tests.llm_core.pictures import png
from tests.llm_core.test_host import running_host
from tests.llm_core.tiny_mmproj import write_tiny_mmproj

pytestmark = pytest.mark.usefixtures("prefect_server")
MODELS = """
models:
  v: {file: a.gguf, mmproj: eyes.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0}}
  blind: {file: a.gguf, overrides: {n_ctx: 512, max_tokens: 8, temperature: 0}}
"""
PIPELINE = """
base_pipeline:
  stages:
    - {id: look, model: v, images: question}
    - {id: compare, model: v, input_from: question, images: [map.png, question]}
    - {id: say, model: blind, input_from: look}
pipelines:
  text: {stages: [{id: say, model: blind}]}
  cached: {cache: true, stages: [{id: look, model: v, images: question}]}
  once: {stages: [{id: look, model: v, images: question}]}
"""
RED, BLUE = png(), png(colour=(0, 0, 255))


@pytest.fixture(scope="module")
async def first_run(prefect_server: None, tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> Project:
    """A project whose session_001 was asked about cat.png."""
    project = Project.make(tmp_path_factory.mktemp("images"))
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "a.gguf")
    write_tiny_mmproj(project.path / "models" / "eyes.gguf")
    (project.path / "cat.png").write_bytes(RED)
    (project.path / "map.png").write_bytes(BLUE)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(project.path)
        patched.setenv("GGUF_FLOW_CACHE_DIR", str(project.path / "cache"))
        await ask(images=["cat.png"])
    return project


async def ask(pipeline: str = "base", **parameters: Any) -> PipelineResult:
    flow = compile_flow(load_pipeline(Settings().pipeline_file, pipeline))
    result: PipelineResult = await flow(question="What is it?", **parameters)
    return result


def answers(project: Project, session: str = "session_001") -> dict[str, str]:
    steps = load_steps(project.sessions, load_session(project.sessions, session))
    return {step.stage: f"{step.prompt_tokens} {step.text}" for step in steps}


async def test_each_stage_sees_its_images_and_says_which(finished: Project) -> None:
    record = load_session(finished.sessions, "session_001")
    steps = {step.stage: step for step in load_steps(finished.sessions, record)}
    sources = {stage: [image.source for image in step.images] for stage, step in steps.items()}
    assert sources == {"look": ["cat.png"], "compare": ["map.png", "cat.png"], "say": []}
    assert {stage: (step.prompt or "").count("<__media__>") for stage, step in steps.items()} == {
        "look": 1,
        "compare": 2,
        "say": 0,
    }
    kept = finished.sessions / "session_001" / "images"
    assert sorted(path.read_bytes() for path in kept.iterdir()) == sorted([RED, BLUE])
    snapshot = json.loads((finished.sessions / "session_001" / "config_snapshot.json").read_text())
    assert snapshot["models"]["v"]["mmproj"]["size_bytes"] == (finished.path / "models" / "eyes.gguf").stat().st_size
    assert len(snapshot["models"]["v"]["mmproj"]["sha256"]) == 64
    assert snapshot["models"]["blind"]["mmproj"] is None
    assert snapshot["models"]["v"]["memory"]["ram"]["compute_bytes"] > 80 * 2**20


async def test_other_image_other_answer_and_without_one_the_text_alone(finished: Project) -> None:
    (finished.path / "cat.png").write_bytes(BLUE)
    await ask("once", images=["cat.png"])
    await ask("once")
    red, blue, none = (answers(finished, f"session_00{n}")["look"] for n in (1, 2, 3))
    assert len({red, blue, none}) == 3
    assert int(red.split()[0]) - int(none.split()[0]) == 16


async def test_rerun_and_replay_see_what_was_seen_then(finished: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat.png", "map.png"):
        (finished.path / name).write_bytes(b"another picture")
    again: PipelineResult = await rerun("session_001", "compare", [StageChange(stage="compare", instructions="")])
    assert answers(finished, again.session_id) == answers(finished)
    shutil.rmtree(finished.sessions / "session_001" / "images")  # the child has its own
    grandchild: PipelineResult = await rerun(again.session_id, "look")
    assert answers(finished, grandchild.session_id) == answers(finished)
    capsys.readouterr()
    assert replay_session(grandchild.session_id, Settings(), verify=True, as_json=False) == 0
    said = capsys.readouterr().out
    assert said.count("identical") == 3
    assert "SHA-256 of v's mmproj: " in said


async def test_retried_run_sees_what_its_first_try_saw(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*rest: Any) -> Any:
        raise ModelLoadError("this once")

    with monkeypatch.context() as patched:
        patched.setattr(ModelPool, "generate", failing)
        with pytest.raises(PipelineFailed):
            await ask("once", images=["cat.png"])
    (finished.path / "cat.png").unlink()
    record = load_session(finished.sessions, "session_002")
    for module in ("flows.pipeline", "flows.retry"):
        monkeypatch.setattr(f"{module}.earlier_try", lambda settings: record)  # as the UI's button makes it
    result = await ask("once", images=["cat.png"])
    assert result.session_id == "session_002"
    assert answers(finished, "session_002")["look"] == answers(finished)["look"]


async def test_two_sessions_differ_by_their_images(finished: Project) -> None:
    await ask("once", images=["map.png"])
    changes = {change.key: change for change in diff_sessions(finished.sessions, "session_001", "session_002").changes}
    assert str(changes["images.question"].before).startswith("cat.png (")
    assert str(changes["images.question"].after).startswith("map.png (")
    assert "models.v.mmproj_sha256" not in changes


async def test_session_whose_images_are_gone_is_not_rerun_and_not_verified(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(finished.sessions / "session_001" / "images")
    with pytest.raises(SessionError, match=r"session_001/images/[0-9a-f]{64}\.png: No such file or directory"):
        await rerun("session_001", "compare")
    capsys.readouterr()
    assert replay_session("session_001", Settings(), verify=True, as_json=True) == 3
    steps = {step["step"]: step["outcome"] for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps == {"1 look: v": "unchecked", "2 compare: v": "unchecked", "3 say: blind": "identical"}


async def test_changed_projector_is_a_changed_model(finished: Project) -> None:
    write_tiny_mmproj(finished.path / "models" / "eyes.gguf", "gemma3")
    with pytest.raises(SessionError, match=r"since session_001: the mmproj of model 'v' has changed \(.*eyes\.gguf\)"):
        await rerun("session_001", "look")


async def test_rerun_with_a_model_that_cannot_see_is_refused(finished: Project) -> None:
    with pytest.raises(PlanError, match=r"stages\[0\]\.model: model 'blind' cannot see images; give it an 'mmproj'"):
        await rerun("session_001", "look", [StageChange(stage="look", model="blind")])


async def test_same_image_is_answered_from_the_cache_whatever_its_name(
    finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await ask("cached", images=["cat.png"])
    asked: list[str] = []
    generate = ModelPool.generate
    monkeypatch.setattr(ModelPool, "generate", lambda *rest: asked.append("") or generate(*rest))  # type: ignore[func-returns-value]
    (finished.path / "dog.png").write_bytes(RED)
    second = await ask("cached", images=["dog.png"])
    assert (asked, second.answer) == ([], first.answer)
    assert [image.source for image in second.steps[0].images] == ["dog.png"]
    assert len(list((second.session_path / "images").iterdir())) == 1
    await ask("cached", images=["map.png"])
    assert asked == [""]


async def test_images_that_nobody_looks_at_are_refused(finished: Project) -> None:
    with pytest.raises(
        InputError, match=r"no stage of 'text' looks at the question's images; give one `images: question`"
    ):
        await ask("text", images=["cat.png"])


async def test_image_that_cannot_be_read_starts_nothing(finished: Project) -> None:
    for source in ("gone.png", "/etc/hostname", "https://example.org/cat.png"):
        with pytest.raises(InputError, match=f"image {source}: "):
            await ask("once", images=[source])
    assert [path.name for path in finished.sessions.glob("session_*")] == ["session_001"]


async def test_image_of_a_listed_host_is_fetched_and_kept(
    finished: Project, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    httpserver.expect_oneshot_request("/cat").respond_with_data(RED)
    monkeypatch.setenv("GGUF_FLOW_IMAGE_HOSTS", f"{httpserver.host}:{httpserver.port}")
    result = await ask("once", images=[httpserver.url_for("/cat")])
    assert answers(finished, result.session_id)["look"] == answers(finished)["look"]
    assert result.steps[0].images[0].source == httpserver.url_for("/cat")


async def test_dataset_with_an_image_for_each_row(finished: Project) -> None:
    (finished.path / "data").mkdir()
    for name, data in (("red", RED), ("blue", BLUE), ("half", RED[:40])):
        (finished.path / "data" / f"{name}.png").write_bytes(data)
    rows: list[dict[str, Any]] = [{"image": "red.png"}, {"images": ["blue.png"]}, {"image": "half.png"}]
    rows += [{"image": "../../outside.png"}, {}]
    dataset = finished.path / "data" / "q.jsonl"
    dataset.write_text("".join(json.dumps({"question": "What is it?"} | row) + "\n" for row in rows))
    result = await batch(dataset, "once")
    found = [json.loads(line)["result"] for line in result.output.read_text().splitlines()]
    assert found[0]["answer"] == answers(finished)["look"].split(" ", 1)[1]
    assert len({found[n]["answer"] for n in (0, 1, 4)}) == 3
    assert found[2]["error"].endswith("half.png: damaged: it cannot be decoded as png")
    assert "lies outside the project folder; add its folder to GGUF_FLOW_IMAGE_FOLDERS" in found[3]["error"]
    kept = (result.session_path / "images").iterdir()
    assert {path.read_bytes() for path in kept} == {RED, BLUE, RED[:40]}


async def test_run_through_the_model_host_sees_the_same(finished: Project) -> None:
    with running_host(Settings().cache_folder):
        pool = HostPool(Settings().cache_folder)
        result = await ask("once", images=["cat.png"])
        assert pool.load_count == 1
    assert answers(finished, result.session_id)["look"] == answers(finished)["look"]


async def test_models_table_says_who_sees(finished: Project) -> None:
    table = models_table(load_registry(Settings()), MemoryEstimates(finished.path / "cache"))
    assert list(table.columns[0].cells) == ["v", "blind"]
    assert list(table.columns[2].cells) == ["ready, sees images", "ready"]


async def test_command_line_takes_images_from_the_current_folder(finished: Project) -> None:
    url = str(get_current_settings().api.url)
    (finished.path / "deep").mkdir()
    shutil.move(finished.path / "cat.png", finished.path / "deep" / "my cat.png")
    found = gguf_flow("run", "What is it?", "-p", "once", "--image", "deep/my cat.png", PREFECT_API_URL=url)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == answers(finished)["look"].split(" ", 1)[1]
    (image,) = load_steps(finished.sessions, load_session(finished.sessions, "session_002"))[0].images
    assert image.source == str(finished.path / "deep" / "my cat.png")


def test_command_line_refuses_what_cannot_be_seen(finished: Project) -> None:
    no_server = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # nor is one looked for before
    assert_refused(gguf_flow("run", "Hi", "-p", "text", "--image", "cat.png"), "no stage of 'text' looks at")
    assert_refused(gguf_flow("run", "Hi", "-p", "once", "--image", "/etc/hostname"), "GGUF_FLOW_IMAGE_FOLDERS")
    assert_refused(
        gguf_flow("run", "Hi", "-p", "once", "--image", "no.png", **no_server), "image ", "no.png: no such file"
    )
    (finished.path / "config" / "pipeline.yaml").write_text(
        PIPELINE.replace("model: v, images: q", "model: blind, images: q")
    )
    said = "base_pipeline.stages[0].model: model 'blind' cannot see images; give it an 'mmproj' in models.yaml"
    assert_refused(gguf_flow("plan"), said)
