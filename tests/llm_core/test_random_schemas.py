"""500 random schemas and a small real model that draws at temperature 1: whatever comes is valid JSON by its schema."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llm_core.call_params import Constraint, LoadParams, SamplingParams
from llm_core.closing import closed
from llm_core.constraints import schema_constraint
from llm_core.engine import Engine
from llm_core.engine_answer import Failed, Finished
from llm_core.generation import GenerateRequest
from tests.llm_core.random_schemas import RandomSchema

N_SCHEMAS = 500
MAX_TOKENS = (4, 12, 24, 48, 80)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def assert_valid(text: str, schema: Any) -> None:
    Draft202012Validator(schema).validate(json.loads(text, parse_constant=refuse))


@pytest.fixture(scope="module")
def schemas() -> list[Any]:
    return [RandomSchema(seed).schema for seed in range(N_SCHEMAS)]


@pytest.fixture(scope="module")
def constraints(schemas: list[Any]) -> list[Constraint]:
    return [schema_constraint(schema) for schema in schemas]


def test_every_answer_to_500_random_schemas_is_valid_cut_off_or_not(
    variants: dict[str, Path], schemas: list[Any], constraints: list[Constraint]
) -> None:
    engine = Engine(LoadParams(str(variants["Q4_0"]), 256, sequences=16))  # batches best
    engine.threads = 2
    for number, (constraint, max_tokens) in enumerate(zip(constraints, itertools.cycle(MAX_TOKENS), strict=False)):
        sampling = SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=number)
        engine.submit(
            number, GenerateRequest((("user", "Give an example, as JSON."),), sampling, constraint=constraint)
        )
    results = {}
    while engine.busy:
        for event in engine.step():
            assert not isinstance(event, Failed), f"schema {event.id}: {event.error}"
            if isinstance(event, Finished):
                results[event.id] = event.result
    for number, schema in enumerate(schemas):
        assert_valid(results[number].text, schema)
    cut_off = sum(result.truncated for result in results.values())
    print(f"{len(results)} of {N_SCHEMAS} valid, {cut_off} of them cut off")
    assert cut_off == sum(result.finish_reason == "length" for result in results.values())
    assert 100 < cut_off < 400


def test_shortest_answer_to_every_schema_is_closed_wherever_it_is_cut(
    schemas: list[Any], constraints: list[Constraint]
) -> None:
    for number, (schema, constraint) in enumerate(zip(schemas, constraints, strict=True)):
        whole = closed(constraint.grammar, b"")
        assert_valid(whole.decode(), schema)
        cut = random.Random(number).randrange(len(whole) + 1)
        assert_valid(closed(constraint.grammar, whole[:cut]).decode(), schema)
