"""Real models, a project folder to run in, and one Prefect server for the whole session."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Before anything imports Prefect: a home of its own, no telemetry, no server of the user's.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="gguf-flow-prefect-")
os.environ["DO_NOT_TRACK"] = "1"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
os.environ.pop("PREFECT_API_URL", None)
for name in [name for name in os.environ if name.startswith("GGUF_FLOW_")]:
    del os.environ[name]

import pytest  # noqa: E402

REPOSITORY = Path(__file__).parent.parent
ENDLESS = (
    "temperature: 5, top_k: 0, top_p: 1, min_p: 0, "
    "logit_bias: {<|im_end|>: -100, <|endoftext|>: -100, <reponame>: -100}"
)
"""How SmolLM2 draws an answer that goes on until `max_tokens`, and does not repeat itself."""
SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUANTIZATIONS = {"Q8_0": 7, "Q5_0": 8, "Q4_0": 2}  # llama_ftype of llama.h


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The small real model; `make test` has pulled it."""
    path = REPOSITORY / "models" / SMOLLM
    assert path.exists(), "run `make test`, or `gguf-flow models pull smollm2` first"
    return path


@pytest.fixture(scope="session")
def variants(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Distinct real models made from the small one: Q4_1 itself, Q8_0, Q5_0 and Q4_0."""
    import llama_cpp

    folder = tmp_path_factory.mktemp("variants")
    made = {"Q4_1": smollm}
    for name, ftype in QUANTIZATIONS.items():
        made[name] = folder / f"SmolLM2-135M-Instruct.{name}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = ftype, 2, True
        failed = llama_cpp.llama_model_quantize(str(smollm).encode(), str(made[name]).encode(), ctypes.byref(params))
        assert not failed
    return made


@dataclass(frozen=True)
class Project:
    """A folder with config/, models/ and sessions/, which is the current one."""

    path: Path

    @classmethod
    def make(cls, path: Path) -> "Project":
        for name in ("config", "models", "sessions"):
            (path / name).mkdir()
        return cls(path)

    def models(self, text: str) -> Path:
        return self._write("models.yaml", text)

    def pipeline(self, text: str) -> Path:
        return self._write("pipeline.yaml", text)

    def link_model(self, source: Path, name: str) -> Path:
        target = self.path / "models" / name
        target.symlink_to(source)
        return target

    def copied_to(self, path: Path) -> "Project":
        """The same project elsewhere, with sessions that know no better than to have been there all the time."""
        shutil.copytree(self.path, path, symlinks=True, dirs_exist_ok=True)
        for file in (path / "sessions").rglob("*.json"):
            file.write_text(file.read_text().replace(str(self.path), str(path)))
        return Project(path)

    @property
    def sessions(self) -> Path:
        return self.path / "sessions"

    def _write(self, name: str, text: str) -> Path:
        path = self.path / "config" / name
        path.write_text(text)
        return path


@pytest.fixture(scope="session")
def known_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SHA-256 and memory needs of model files, by file: to find them out in each test anew took a second."""
    folder = tmp_path_factory.mktemp("known")
    for name in ("sha256", "memory"):
        (folder / name).mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_models: Path) -> Iterator[Project]:
    """An empty project; its YAML files are for the test to write."""
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "cache"
    monkeypatch.setenv("GGUF_FLOW_CACHE_DIR", str(cache))
    shutil.copytree(known_models, cache)
    project = Project.make(tmp_path)
    yield project
    if any(path.is_symlink() for path in (tmp_path / "models").glob("*")):  # the real ones, of all tests
        for found in (*cache.glob("sha256/*"), *cache.glob("memory/*")):
            kept = known_models / found.relative_to(cache)
            if not found.name.endswith(".measured.json") and not kept.exists():
                shutil.copy(found, kept)


@pytest.fixture
def example_project(project: Project, smollm: Path) -> Project:
    """The repository's own config/ beside the small real model."""
    for name in ("models.yaml", "pipeline.yaml"):
        shutil.copy(REPOSITORY / "config" / name, project.path / "config" / name)
    project.link_model(smollm, SMOLLM)
    return project


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with its own database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
