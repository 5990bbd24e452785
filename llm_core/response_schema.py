"""`response_schema` and `grammar` as they may be written: in place, as a file, or as a pydantic model's dotted name."""

import importlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from llm_core.documents import key_path
from llm_core.schema_keywords import subschemas

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")
_SCHEMA_FILES = (".json", ".yaml", ".yml")
_GRAMMAR_FILES = (".lark", ".gbnf")


def read_schema(written: Any, folder: Path | None) -> Any:
    """The JSON schema itself.

    Args:
        written: the schema, the path of a .json or .yaml file, or `package.module.Model`.
        folder: where relative paths begin; it and the one above it are searched for modules, after Python's own.

    Raises:
        ValueError: one line.
    """
    if isinstance(written, str):
        if written.endswith(_SCHEMA_FILES):
            return _only_json(_file(written, folder), written)
        return _of_model(written, folder)
    return _only_json(written, None)


def read_grammar(written: str, folder: Path | None) -> str:
    """The text of a grammar; a single word that ends in .lark or .gbnf names its file.

    Raises:
        ValueError: one line.
    """
    is_file = written.endswith(_GRAMMAR_FILES) and "\n" not in written
    return _text(written, folder) if is_file else written


def _text(name: str, folder: Path | None) -> str:
    path = (folder or Path()) / name
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; a path here is relative to the folder of this file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def _file(name: str, folder: Path | None) -> Any:
    text = _text(name, folder)
    try:
        return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def _only_json(value: Any, source: str | None) -> Any:
    """`value`, if JSON can say it; YAML has dates and other keys than text."""
    for location, one in _values(value):
        at = f"{source}: " if source else ""
        at += f"{key_path(location)}: " if location else ""
        if isinstance(one, Mapping):
            if key := next((key for key in one if not isinstance(key, str)), None):
                raise ValueError(f"{at}the key {key!r} is no text; quote it")
        elif not (one is None or isinstance(one, str | int | list) or (isinstance(one, float) and isfinite(one))):
            raise ValueError(f"{at}{one} cannot stand in JSON; quote it")
    return value


def _values(value: Any, location: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield location, value
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from _values(one, (*location, key if isinstance(key, int) else str(key)))


def _of_model(name: str, folder: Path | None) -> Any:
    """The schema of a pydantic model, which takes no other keys than its fields."""
    from pydantic import BaseModel
    from pydantic.errors import PydanticUserError

    if not _DOTTED.fullmatch(name):
        raise ValueError(f"{name!r} is no schema, no .json or .yaml file, and no package.module.Model")
    module_name, _, class_name = name.replace(":", ".").rpartition(".")
    try:
        with _importable_from(folder):
            model = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # the module may do anything
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ValueError(f"{name} is no pydantic model")
    try:
        schema = model.model_json_schema()
    except PydanticUserError as error:
        raise ValueError(f"{name}: {str(error).splitlines()[0]}") from None
    for _, one in subschemas(schema):
        if isinstance(one, dict) and "properties" in one:
            one.setdefault("additionalProperties", False)
    return schema


@contextmanager
def _importable_from(folder: Path | None) -> Iterator[None]:
    before = list(sys.path)
    if folder:
        sys.path += [str(folder.resolve().parent), str(folder.resolve())]
    try:
        yield
    finally:
        sys.path[:] = before
