"""A PipelineSpec back into pipeline.yaml, beside what stands there, comments and all."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from llm_core.atomic_write import write_whole
from llm_core.documents import validate
from llm_core.errors import ConfigError, InputError
from llm_core.pipeline import BASE, RESERVED, MemberSpec, PipelineSpec, StageSpec, load_pipelines

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


def save_pipeline(path: Path, name: str, spec: PipelineSpec) -> None:
    """Add `spec` to pipeline.yaml under `name`; all else in the file stays what it was.

    Raises:
        InputError: the name cannot be used, or is taken.
        ConfigError: the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' cannot name a pipeline; take letters, digits, dashes and underscores")
    before = load_pipelines(path)
    if name in before or name in RESERVED or name == BASE:
        raise InputError(f"{path}: there is a pipeline '{name}' already; take another name")
    text = path.read_text(encoding="utf-8")
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    if not document.get("pipelines"):
        document["pipelines"] = CommentedMap()
    document["pipelines"][name] = as_written(spec)
    written = io.StringIO()
    yaml.dump(document, written)
    _check(written.getvalue(), before | {name: spec.model_copy(update={"name": name})}, path)
    try:
        write_whole(path, written.getvalue())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def _check(text: str, expected: Mapping[str, PipelineSpec], path: Path) -> None:
    """What was written must say what was meant, before it takes the place of a file made by hand."""
    document = YAML(typ="safe").load(text)
    base = {BASE: document["base_pipeline"]} if document.get("base_pipeline") else {}
    for name, written in (base | document["pipelines"]).items():
        if validate({**written, "name": name}, PipelineSpec, f"{path}: {name}") != expected[name]:
            raise ConfigError(f"{path}: pipeline '{name}' would not be the same after saving; add it by hand")


def as_written(spec: PipelineSpec) -> dict[str, Any]:
    """`spec` as a person would write it: only what is set, and `model` or `models` for its members."""
    data = _set(spec, {"name", "stages"})
    return data | {"stages": [_stage(stage) for stage in spec.stages]}


def _stage(stage: StageSpec) -> dict[str, Any]:
    members = [_member(member) for member in stage.members]
    models = {"model": members[0]} if stage.type == "single" else {"models": members}
    rest = _set(stage, {"id", "type", "members"})
    if stage.type == "multi" and rest.get("aggregation") is None:
        rest.pop("aggregation", None)
    return {"id": stage.id, **models, **rest}


def _member(member: MemberSpec) -> str | dict[str, Any]:
    written = _set(member, set())
    return member.model if set(written) == {"model"} else written


def _set(model: PipelineSpec | StageSpec | MemberSpec, without: set[str]) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude=without, exclude_defaults=True, exclude_none=True)
