"""The value of an answer, read strictly and validated once more."""

import json
from typing import Any

import pytest

from llm_core.call_params import Constraint
from llm_core.constraints import grammar_constraint, schema_constraint
from llm_core.errors import ConstraintError
from llm_core.structured import parsed_answer, validate_json

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 5}}, "required": ["a"]}


def test_value_of_an_answer_with_a_schema_is_parsed() -> None:
    assert parsed_answer(schema_constraint(SCHEMA), '{"a": 5, "b": [null]}') == {"a": 5, "b": [None]}


@pytest.mark.parametrize("constraint", [None, grammar_constraint('start: "{}"')])
def test_other_answers_have_no_value(constraint: Constraint | None) -> None:
    assert parsed_answer(constraint, "{}") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "the answer is not JSON: Expecting"),
        ('{"a": NaN}', "the answer is not JSON: NaN is no number"),
        ('{"a": -Infinity}', "the answer is not JSON: -Infinity is no number"),
        ('{"a": 1e999}', "the answer is not JSON: 1e999 is larger than a float"),
        ('{"a": ' + "1" * 5000 + "}", "the answer is not JSON: Exceeds the limit"),
        ("[" * 100_000, "the answer is not JSON: "),
        ('{"a": 6}', "the answer does not match response_schema: a: 6 is greater than the maximum of 5"),
        ("[]", "the answer does not match response_schema: [] is not of type 'object'"),
    ],
)
def test_answer_that_got_past_the_mask_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConstraintError) as error:
        parsed_answer(schema_constraint(SCHEMA), text)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("value", "divisor", "valid"), [(0.3, 0.1, True), (0.35, 0.1, False), (12, 4, True)])
def test_multiples_are_those_of_decimals(value: float, divisor: float, valid: bool) -> None:
    schema: Any = {"multipleOf": divisor}
    if valid:
        assert validate_json(str(value), json.dumps(schema)) == value
    else:
        with pytest.raises(ConstraintError, match=r"0\.35 is not a multiple of 0\.1"):
            validate_json(str(value), json.dumps(schema))
