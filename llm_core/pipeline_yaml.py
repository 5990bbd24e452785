"""A PipelineSpec back into pipeline.yaml, beside what stands there, comments and all."""

import io
import re
from math import inf
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from yaml import safe_dump

from llm_core.atomic_write import write_whole
from llm_core.documents import parse_document
from llm_core.errors import ConfigError, InputError
from llm_core.pipeline import BASE, RESERVED, PipelinesDocument, PipelineSpec, load_pipelines
from llm_core.stage_spec import MemberSpec, StageSpec

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
    document["pipelines"][name] = _quoted(as_written(spec))
    written = io.StringIO()
    yaml.dump(document, written)
    # What was written must say what was meant, before it takes the place of a file made by hand.
    expected = before | {name: spec.model_copy(update={"name": name})}
    if parse_document(written.getvalue(), PipelinesDocument, path).by_name() != expected:
        raise ConfigError(f"{path}: the pipelines would not be the same after saving; add '{name}' by hand")
    try:
        write_whole(path, written.getvalue())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def as_written(spec: PipelineSpec) -> dict[str, Any]:
    """`spec` as a person would write it: only what is set, and `model` or `models` for its members."""
    data = _set(spec, {"name", "stages"})
    return data | {"stages": [_stage(stage) for stage in spec.stages]}


def _stage(stage: StageSpec) -> dict[str, Any]:
    members = [_member(member) for member in stage.members]
    models = {"model": members[0]} if stage.type == "single" else {"models": members}
    rest = _set(stage, {"id", "type", "members"})
    if not rest.get("aggregation"):  # concat, which a stage has by itself
        rest.pop("aggregation", None)
    return {"id": stage.id, **models, **rest}


def _member(member: MemberSpec) -> str | dict[str, Any]:
    written = _set(member, set())
    return member.model if set(written) == {"model"} else written


def _quoted(value: Any) -> Any:
    """With quotes around texts that YAML 1.1, which reads the file, takes for something else: yes, 1:30, 010."""
    if isinstance(value, dict):
        return {_quoted(key): _quoted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_quoted(one) for one in value]
    if isinstance(value, str) and safe_dump([value], width=inf, allow_unicode=True) != f"- {value}\n":
        return DoubleQuotedScalarString(value)
    return value


def _set(model: PipelineSpec | StageSpec | MemberSpec, without: set[str]) -> dict[str, Any]:
    return model.model_dump(mode="json", exclude=without, exclude_defaults=True, exclude_none=True)
