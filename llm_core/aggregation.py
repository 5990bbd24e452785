"""The named aggregations, and the texts of those that write: concat, synthesis, templates."""

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_core.documents import near_name
from llm_core.errors import AggregationError

VOTES = ("majority_vote", "self_consistency", "weighted_vote")
KINDS = ("concat", *VOTES, "cascade", "similarity", "ranked", "judge", "field_vote", "synthesis", "custom_template")
TEMPLATE_VARIABLES = ("question", "inputs", "answers")

SYNTHESIS_INSTRUCTIONS = (
    "Several models answered the question independently. Write the one best answer: keep what is correct, "
    "resolve contradictions, leave out what is wrong, and do not mention the candidates."
)
"""What a synthesis model is told unless the aggregation has `instructions` of its own."""

SUMMARY_INSTRUCTIONS = (
    "Summarise this answer to a question in a few sentences. Keep every fact, figure and conclusion; add nothing."
)

_environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def concat(answers: Mapping[str, str]) -> str:
    """All answers in order, each under its member's name."""
    return "\n\n".join(f"[{member}]\n{text}" for member, text in answers.items())


def synthesis_message(question: str, answers: Mapping[str, str], instructions: str | None = None) -> str:
    """The synthesis model's prompt: instructions, the question, every candidate under its label."""
    candidates = "\n\n".join(
        f"Candidate {n} ({member}):\n{text}" for n, (member, text) in enumerate(answers.items(), 1)
    )
    return f"{instructions or SYNTHESIS_INSTRUCTIONS}\n\nQuestion:\n{question}\n\n{candidates}\n\nBest answer:"


def summary_message(question: str, text: str) -> str:
    """What the synthesis model is asked of a candidate where all of them together do not fit."""
    return f"{SUMMARY_INSTRUCTIONS}\n\nQuestion:\n{question}\n\nAnswer:\n{text}\n\nSummary:"


def check_template(template: str) -> None:
    """Refuse a template that cannot render, before anything runs.

    Raises:
        AggregationError: syntax, an unknown variable, or a reach for Python internals.
    """
    try:
        tree = _environment.parse(template)
        _environment.from_string(template)  # finds unknown filters, which parsing does not
    except TemplateSyntaxError as error:
        raise AggregationError(f"line {error.lineno}: {error.message}") from None
    for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise AggregationError(f"line {node.lineno}: a template cannot read other templates")
    unknown = sorted(meta.find_undeclared_variables(tree) - set(TEMPLATE_VARIABLES))
    if unknown:
        raise AggregationError(f"unknown variable '{unknown[0]}'{near_name(unknown[0], TEMPLATE_VARIABLES)}")
    for attribute in _attributes(tree):
        if attribute.startswith("_"):
            raise AggregationError(f"'{attribute}' is not allowed; templates see text only")


def template_references(template: str, variable: str) -> set[str]:
    """The constant names a template reads from `inputs` or `answers`: `{{ answers.a }}`, `{{ answers['a'] }}`."""
    found = set()
    for node in _environment.parse(template).find_all((nodes.Getattr, nodes.Getitem)):
        if isinstance(node.node, nodes.Name) and node.node.name == variable:  # type: ignore[attr-defined]
            name = _constant_name(node)
            if name is not None and not hasattr(dict, name):
                found.add(name)
    return found


def _attributes(tree: nodes.Template) -> list[str]:
    names = [_constant_name(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem))]
    by_filter = [node.args[0] for node in tree.find_all(nodes.Filter) if node.name == "attr" and node.args]
    names += [arg.value for arg in by_filter if isinstance(arg, nodes.Const) and isinstance(arg.value, str)]
    return [name for name in names if name is not None]


def _constant_name(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    return None


def render_template(template: str, **variables: Any) -> str:
    """Render in the sandbox; `variables` are `question`, `inputs` (stage → text) and `answers` (member → text).

    Raises:
        AggregationError: the template failed on these answers.
    """
    try:
        return _environment.from_string(template).render(**variables).strip()
    except TemplateError as error:
        raise AggregationError(f"template: {error.message}") from None
    except Exception as error:
        raise AggregationError(f"template: {type(error).__name__}: {error}") from None
