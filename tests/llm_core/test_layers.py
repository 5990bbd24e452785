"""deployments → flows → tasks → llm_core: an arrow is "may import", and nothing imports upwards."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

LAYERS = ("llm_core", "tasks", "flows", "deployments")


@pytest.mark.parametrize("layer", LAYERS[:-1])
def test_nothing_imports_upwards(layer: str) -> None:
    forbidden = set(LAYERS[LAYERS.index(layer) + 1 :]) | ({"prefect"} if layer == "llm_core" else set())
    files = sorted((REPOSITORY / layer).rglob("*.py"))
    assert len(files) > 1
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            upwards = {name for name in names if name.partition(".")[0] in forbidden}
            assert not upwards, f"{file.relative_to(REPOSITORY)} imports {upwards}"


def test_command_line_starts_without_prefect() -> None:
    code = "import flows.cli, sys; assert 'prefect' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
