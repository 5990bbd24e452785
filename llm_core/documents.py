"""YAML files into validated models, and one clear line where that fails: file, key path, near name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from llm_core.errors import ConfigError


def near_name(name: object, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `known`, or all of them when none is close."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


class Document(BaseModel):
    """Base of everything that is read from YAML: frozen, and unknown keys are errors with the near name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key '{key}'{near_name(key, cls.model_fields)}")
        return data


DocumentT = TypeVar("DocumentT", bound=BaseModel)


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys as written; a merged `<<: *base` may bring some of them again."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key_node.value}' stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return node


def load_document(path: Path, model: type[DocumentT]) -> DocumentT:
    """Read and validate the YAML file at `path`.

    Raises:
        ConfigError: one line that names the file and the line or key path that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run in the project's folder or set GGUF_FLOW_CONFIG_DIR") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return parse_document(text, model, path)


def parse_document(text: str, model: type[DocumentT], path: Path) -> DocumentT:
    """Validate the text of a YAML file; as `load_document`."""
    try:
        data = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path}:{line} YAML syntax: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: YAML syntax: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: expected a mapping of keys, found {'nothing' if data is None else repr(data)[:60]}")
    return validate(data, model, str(path), path.parent)


def validate(data: Any, model: type[DocumentT], source: str, folder: Path | None = None) -> DocumentT:
    """Validate `data`; a `ConfigError` names `source` and the key path.

    Args:
        folder: where relative paths in it begin.
    """
    try:
        return model.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """The first problem of a pydantic error as one line, with the number of further ones."""
    problems = error.errors()
    # A list with a wrong item is called too short as well.
    first, *others = [problem for problem in problems if problem["type"] != "too_short"] or problems
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "this key is required"
    elif "input" in first and isinstance(first["input"], str | int | float | bool):
        message = f"{message[:1].lower()}{message[1:]}"
        if first["type"] != "value_error":
            message += f", not {first['input']!r}"
    more = f" (and {len(others)} more)" if others else ""
    path = key_path(first["loc"])
    return f"{path}: {message}{more}" if path else f"{message}{more}"


def key_path(location: Iterable[int | str]) -> str:
    """`('stages', 1, 'model')` → `stages[1].model`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
