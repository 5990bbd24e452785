"""What a stage holds its answers to, as its calls carry it."""

import json
from typing import TYPE_CHECKING, Any

from llm_core.call_params import Constraint

if TYPE_CHECKING:
    from llm_core.stage_spec import StageSpec


def constraint_of(stage: "StageSpec") -> Constraint | None:
    """The constraint of every answer of `stage`, a synthesis among them: what it hands on is held to it too."""
    votes = stage.aggregation is not None and stage.aggregation.type == "field_vote"
    how = {"think": stage.think, "on_truncation": stage.on_truncation or "complete", "logprobs": votes}
    if stage.response_schema is not None:
        return schema_constraint(stage.response_schema, **how)
    return None if stage.grammar is None else grammar_constraint(stage.grammar, **how)


def schema_constraint(schema: Any, **how: Any) -> Constraint:
    """The constraint that a JSON schema is.

    Raises:
        ValueError: it cannot be enforced; one line with the key path in the schema.
    """
    from llm_core.schema_grammar import schema_grammar  # llguidance is loaded only where something is constrained

    return Constraint(schema_grammar(schema), json.dumps(schema), **how)


def grammar_constraint(text: str, **how: Any) -> Constraint:
    """The constraint that a grammar in Lark or GBNF is.

    Raises:
        ValueError: it is none; one line.
    """
    from llm_core.grammar_text import text_grammar

    return Constraint(text_grammar(text), **how)
