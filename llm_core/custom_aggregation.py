"""An aggregation of one's own: `package.module:function`, or the name of an entry point."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from llm_core.errors import AggregationError
from llm_core.votes import Merged

GROUP = "gguf_flow.aggregations"
Aggregate = Callable[[str, Mapping[str, str]], str | tuple[str, Mapping[str, Any]]]
"""From the question and the answers by member to the answer, or to that and the evidence (which JSON can hold)."""


@cache
def find_custom(name: str) -> Aggregate | None:
    """The function that `name` stands for; `None` where it is neither a dotted path nor an entry point.

    Raises:
        AggregationError: there is such a name, and what it leads to cannot be imported or called.
    """
    found = [point.value for point in entry_points(group=GROUP, name=name)]
    path = found[0] if found else name
    module, colon, attribute = path.partition(":")
    if not colon:
        return None
    try:
        function = getattr(import_module(module), attribute)
    except Exception as error:
        raise AggregationError(f"aggregation '{name}': {type(error).__name__}: {error}") from None
    if not callable(function):
        raise AggregationError(f"aggregation '{name}' is no function")
    return function  # type: ignore[no-any-return]


def merge_by(name: str, question: str, answers: Mapping[str, str]) -> Merged:
    """What the custom aggregation `name` makes of the answers.

    Raises:
        AggregationError: it failed, or gave something else than text.
    """
    function = find_custom(name)
    assert function
    try:
        made = function(question, dict(answers))
    except Exception as error:
        raise AggregationError(f"aggregation '{name}': {type(error).__name__}: {error}") from None
    text, evidence = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
    if not isinstance(text, str) or not isinstance(evidence, Mapping):
        raise AggregationError(f"aggregation '{name}' must give text, or text and evidence, not {type(made).__name__}")
    agreed = tuple(member for member, answer in answers.items() if answer == text)
    return Merged(text, agreed, evidence)
