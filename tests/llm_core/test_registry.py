"""models.yaml and the models folder: which models can be used, and why the others cannot."""

import logging
import random
from pathlib import Path

import pytest

from llm_core.errors import ConfigError
from llm_core.parameters import ModelParams
from llm_core.registry import ModelRegistry, load_registry
from llm_core.settings import Settings
from tests.conftest import Project
from tests.llm_core.tiny_gguf import PADDING, write_tiny_gguf
from tests.llm_core.tiny_mmproj import write_tiny_mmproj


def registry_of(project: Project, text: str) -> ModelRegistry:
    project.models(text)
    return load_registry(Settings())


def test_document_with_every_key_of_the_format_loads(project: Project) -> None:
    write_tiny_gguf(project.path / "gguf" / "a.gguf")
    registry = registry_of(
        project,
        """
        version: "1.0"
        models_directory: gguf
        defaults: {n_ctx: 2048, n_gpu_layers: 0, temperature: 0.7, top_p: 0.95, max_tokens: 200, threads: 4}
        models:
          a:
            file: a.gguf
            description: The first.
            quantization: Q8_0
            required_for_base: true
            overrides: {temperature: 0.2, threads: 2}
            default_n_ctx: 4096
            default_gpu_layers: -1
            huggingface_repo: org/repo
            release_date: 2024-11-01
            parameters_b: 0.1
            request_style: chat
            strip_reasoning: true
            source: hf:org/repo/a.gguf
            sha256: 9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08
          far: {provider: {type: openai_compatible, base_url: "http://localhost/v1"}}
        """,
    )
    assert registry.defaults == ModelParams(
        n_ctx=2048, n_gpu_layers=0, temperature=0.7, top_p=0.95, max_tokens=200, threads=4
    )
    model = registry.available["a"]
    assert model.path == project.path / "gguf" / "a.gguf"
    assert model.entry.params == ModelParams(temperature=0.2, threads=2, n_ctx=4096, n_gpu_layers=-1)
    assert (model.entry.required_for_base, model.entry.strip_reasoning) == (True, True)
    assert registry.names == ["a", "far"]
    assert registry.remote["far"].remote.provider == "openai_compatible"


def test_repository_models_load(example_project: Project) -> None:
    registry = load_registry(Settings())
    assert list(registry.available) == ["smollm2", "smollm2-bold", "smollm2-plain"]
    assert not registry.missing
    assert registry.available["smollm2-plain"].entry.params.temperature == 0


def test_two_names_may_share_one_file(project: Project) -> None:
    write_tiny_gguf(project.path / "models" / "a.gguf")
    registry = registry_of(project, "models: {a: {file: a.gguf}, b: {file: a.gguf, overrides: {temperature: 0}}}")
    assert registry.available["a"].path == registry.available["b"].path
    assert registry.available["a"].entry.params.temperature is None
    assert registry.available["b"].entry.params.temperature == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "the file is missing"),
        (b"", "the file is empty; fetch it again"),
        (b"GG", "not a GGUF file (it starts with b'GG')"),
        (random.Random(1).randbytes(5000), "not a GGUF file (it starts with "),
        (b"<!DOCTYPE html><html>", "not a GGUF file (it starts with b'<!DO')"),
        (b"GGUF", "truncated or damaged GGUF file (its header is cut off); fetch it again"),
        (b"GGUF" + random.Random(1).randbytes(5000), "damaged GGUF file (version "),
        (b"GGUF\x03\0\0\0" + random.Random(1).randbytes(5000), "truncated or damaged GGUF file"),
        ("cut", "truncated GGUF file (20 bytes are missing); fetch it again"),
        ("folder", "Is a directory"),
    ],
)
def test_unusable_file_leaves_its_model_out_with_the_reason_and_keeps_the_others(
    project: Project, caplog: pytest.LogCaptureFixture, content: bytes | str | None, reason: str
) -> None:
    write_tiny_gguf(project.path / "models" / "sound.gguf")
    path = project.path / "models" / "other.gguf"
    if content == "cut":
        path.write_bytes(write_tiny_gguf(path).read_bytes()[: -(PADDING + 20)])
    elif content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)

    with caplog.at_level(logging.WARNING):
        registry = registry_of(project, "models: {sound: {file: sound.gguf}, other: {file: other.gguf}}")

    assert list(registry.available) == ["sound"]
    missing = registry.missing["other"]
    assert missing.path == path
    assert missing.reason.startswith(reason)
    assert caplog.messages == [f"model 'other' is left out: {path}: {missing.reason}"]


def test_missing_models_directory_is_refused_with_the_remedy(project: Project) -> None:
    with pytest.raises(ConfigError) as refusal:
        registry_of(project, "models_directory: nowhere\nmodels: {a: {file: a.gguf}}")
    message = str(refusal.value)
    assert message.startswith(f"models directory {project.path}/nowhere does not exist; ")
    assert "GGUF_FLOW_MODELS_DIR" in message


def test_environment_goes_before_the_models_directory_of_the_file(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(tmp_path / "disk" / "a.gguf")
    monkeypatch.setenv("GGUF_FLOW_MODELS_DIR", str(tmp_path / "disk"))
    registry = registry_of(project, "models_directory: nowhere\nmodels: {a: {file: a.gguf}}")
    assert registry.available["a"].path == path


def test_models_directory_starts_at_the_folder_that_holds_config(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_gguf(project.path / "models" / "sub" / "a.gguf")
    project.models("models: {a: {file: sub/a.gguf}}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("GGUF_FLOW_CONFIG_DIR", "../config")
    assert load_registry(Settings()).available["a"].path.resolve() == path


@pytest.mark.parametrize("file", ["../a.gguf", "sub/../../a.gguf", "sub/.."])
def test_file_must_not_lead_out_of_the_models_directory(project: Project, file: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        registry_of(project, f"models: {{a: {{file: {file}}}}}")
    assert str(refusal.value).startswith(f"model 'a': file '{file}' leads out of the models directory")


def test_absolute_file_stands_where_it_says(project: Project, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "disk" / "a.gguf")
    assert registry_of(project, f"models: {{a: {{file: {path}}}}}").available["a"].path == path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version: 1", "models: this key is required"),
        ("models: {a: {}}", "models.a: needs 'file' (a GGUF in the models directory) or 'provider'"),
        ("models: {a: {file: a.gguf, provider: openai}}", "models.a: takes either 'file' or 'provider', not both"),
        ("models: {a: {provider: opnai}}", "models.a: unknown provider 'opnai'; did you mean 'openai'?"),
        ("models: {a: {fiel: a.gguf}}", "models.a: unknown key 'fiel'; did you mean 'file'?"),
        (
            "models: {a: {file: a.gguf, overrides: {temperature: -1}}}",
            "models.a.overrides.temperature: input should be greater than or equal to 0, not -1",
        ),
        ("defaults: {thread: 2}\nmodels: {}", "defaults: unknown key 'thread'; did you mean 'threads'?"),
        ("defaults: {threads: 0}\nmodels: {}", "defaults.threads: input should be greater than or equal to 1, not 0"),
        (
            "models: {a: {file: a.gguf, sha256: abc}}",
            "models.a.sha256: string should match pattern '^[0-9a-fA-F]{64}$', not 'abc'",
        ),
    ],
)
def test_wrong_document_is_refused_with_its_key_path(project: Project, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        registry_of(project, text)
    assert str(refusal.value) == f"config/models.yaml: {problem}"


@pytest.mark.parametrize("text", ["defaults:\nmodels: {}", "models: {a: {provider: anthropic, overrides: }}"])
def test_keys_with_nothing_under_them_are_as_if_left_out(project: Project, text: str) -> None:
    assert registry_of(project, text).defaults == ModelParams()


SEES = "models: {a: {file: a.gguf, mmproj: eyes.gguf}, b: {file: a.gguf}}"


def test_model_with_a_projector_has_it_beside_its_file(project: Project) -> None:
    write_tiny_gguf(project.path / "models" / "a.gguf")
    write_tiny_mmproj(project.path / "models" / "eyes.gguf")
    registry = registry_of(project, SEES)
    assert registry.available["a"].mmproj is not None
    assert registry.available["a"].mmproj.path == project.path / "models" / "eyes.gguf"
    assert registry.available["b"].mmproj is None


def test_model_whose_projector_cannot_be_used_is_left_out_with_the_reason(project: Project) -> None:
    write_tiny_gguf(project.path / "models" / "a.gguf")
    eyes = project.path / "models" / "eyes.gguf"
    reasons = {}
    reasons["missing"] = registry_of(project, SEES).missing["a"]
    eyes.write_bytes(write_tiny_mmproj(project.path / "whole.gguf").read_bytes()[:-100])
    reasons["truncated"] = registry_of(project, SEES).missing["a"]
    write_tiny_gguf(eyes)
    reasons["model"] = registry_of(project, SEES).missing["a"]
    write_tiny_mmproj(eyes, vision=False)
    reasons["deaf"] = registry_of(project, SEES).missing["a"]
    assert {kind: missing.reason for kind, missing in reasons.items()} == {
        "missing": "the file is missing",
        "truncated": "truncated GGUF file (100 bytes are missing); fetch it again",
        "model": "not the projector of a model that sees: it is a model of type 'llama'",
        "deaf": "not the projector of a model that sees: it has no vision encoder",
    }
    assert {missing.path for missing in reasons.values()} == {eyes}


@pytest.mark.parametrize("file", ["../eyes.gguf", "a/../../eyes.gguf"])
def test_projector_must_not_lead_out_of_the_models_directory(project: Project, file: str) -> None:
    write_tiny_gguf(project.path / "models" / "a.gguf")
    with pytest.raises(ConfigError, match=f"model 'a': mmproj '{file}' leads out of the models directory"):
        registry_of(project, f"models: {{a: {{file: a.gguf, mmproj: {file}}}}}")


def test_projector_belongs_to_a_local_model(project: Project) -> None:
    with pytest.raises(ConfigError, match="'mmproj' belongs to a local model, with a 'file'"):
        registry_of(project, "models: {a: {provider: openai, mmproj: eyes.gguf}}")
