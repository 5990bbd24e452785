"""An answer that was held to a JSON schema, parsed and validated once more."""

import json
from fractions import Fraction
from functools import lru_cache
from math import isfinite
from typing import Any

from llm_core.call_params import Constraint
from llm_core.constraint_errors import one_line
from llm_core.documents import key_path
from llm_core.errors import ConstraintError


def parsed_answer(constraint: Constraint | None, text: str) -> Any:
    """The JSON value of an answer that has a schema; `None` for any other.

    Raises:
        ConstraintError: it is not what the schema says; nothing else gets out.
    """
    return validate_json(text, constraint.schema) if constraint and constraint.schema else None


def validate_json(text: str, schema: str) -> Any:
    """The value of `text`, strictly read and valid by `schema`, which is JSON too.

    Raises:
        ConstraintError: one line.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"the answer is not JSON: {one_line(str(error))}") from None
    problem = next(_validator(schema).iter_errors(value), None)
    if problem:
        at = f"{key_path(problem.absolute_path)}: " if problem.absolute_path else ""
        raise ConstraintError(f"the answer does not match response_schema: {at}{one_line(problem.message)}")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _finite(text: str) -> float:
    if not isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is larger than a float")
    return value


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, ValidationError, validators

    def multiple_of(validator: Any, divisor: Any, value: Any, schema: Any) -> Any:
        """As decimals: 0.3 / 0.1 is no whole number in floats."""
        if validator.is_type(value, "number") and Fraction(str(value)) % Fraction(str(divisor)):
            yield ValidationError(f"{value!r} is not a multiple of {divisor!r}")

    exact: Any = validators.extend(Draft202012Validator, {"multipleOf": multiple_of})  # type: ignore[no-untyped-call]
    read = json.loads(schema)
    if isinstance(read, dict):
        read = {key: value for key, value in read.items() if key not in ("$schema", "$id")}
    return exact(read)
