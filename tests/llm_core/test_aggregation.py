"""Several answers to one, worked out by hand."""

import pytest

from llm_core.aggregation import (
    SYNTHESIS_INSTRUCTIONS,
    check_template,
    concat,
    render_template,
    synthesis_message,
    template_references,
)
from llm_core.errors import AggregationError


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({"a": "one"}, "[a]\none"),
        ({"b": "two", "a": "one"}, "[b]\ntwo\n\n[a]\none"),
        ({"a": "", "b": "x\ny"}, "[a]\n\n\n[b]\nx\ny"),
    ],
)
def test_concat_puts_each_answer_under_its_name_in_order(answers: dict[str, str], text: str) -> None:
    assert concat(answers) == text


@pytest.mark.parametrize(("own", "head"), [("Pick the best.", "Pick the best."), (None, SYNTHESIS_INSTRUCTIONS)])
def test_synthesis_model_is_given_the_question_and_every_candidate(own: str | None, head: str) -> None:
    assert synthesis_message("Why?", {"b": "So.", "a": "Thus."}, own) == (
        f"{head}\n\nQuestion:\nWhy?\n\nCandidate 1 (b):\nSo.\n\nCandidate 2 (a):\nThus.\n\nBest answer:"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ question }}: {{ answers.a }}", "Why?: A & B"),
        ("{{ answers['b-2'] }} {{ inputs.draft | upper }}", "<two> D"),
        ("{% for name, text in answers.items() %}{{ name }}={{ text }};{% endfor %}", "a=A & B;b-2=<two>;"),
        ("{{ answers.values() | join('_') }}", "A & B_<two>"),
        ("{{ answers | length }}{# not shown #}", "2"),
        ("{% if 'x' in question %}yes{% else %}no{% endif %}", "no"),
        ("\n  {{ question }}  \n", "Why?"),
    ],
)
def test_template_makes_one_text_of_question_inputs_and_answers(template: str, text: str) -> None:
    check_template(template)
    answers = {"a": "A & B", "b-2": "<two>"}
    assert render_template(template, question="Why?", inputs={"draft": "d"}, answers=answers) == text


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ question", "line 1: unexpected end of template"),
        ("a\n{% for %}", "line 2: "),
        ("{{ anwers.a }}", "unknown variable 'anwers'; did you mean 'answers'?"),
        ("{{ self_destruct }}", "unknown variable 'self_destruct'; known: question, inputs, answers"),
        ("{{ answers.b-2 }} {{ b }}", "unknown variable 'b'"),
        ("{{ question | shout }}", "line 1: No filter named 'shout'."),
        ("{{ question is loud }}", "line 1: No test named 'loud'."),
        ("{% include 'secret.txt' %}", "line 1: a template cannot read other templates"),
        ("{{ ''.__class__ }}", "'__class__' is not allowed"),
        ("{{ ''['__class__'] }}", "'__class__' is not allowed"),
        ("{{ question | attr('__class__') }}", "'__class__' is not allowed"),
        ("{{ answers.__init__.__globals__ }}", "is not allowed"),
        ("{{ ''[('_' * 2) ~ 'class' ~ ('_' * 2)] }}", "'__class__' is not allowed"),
    ],
)
def test_template_that_cannot_or_must_not_render_is_refused_beforehand(template: str, problem: str) -> None:
    with pytest.raises(AggregationError) as refusal:
        check_template(template)
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ answers[question] }}", "access to attribute '__class__' of 'dict' object is unsafe"),
        ("{{ (answers.a | attr(question)).mro() }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ '{0.__class__}'.format(answers) }}", "access to attribute '__class__' of 'dict' object is unsafe"),
        ("{{ [answers.a] | map(attribute=question) | first | upper }}", "unsafe"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ answers.a.nothing }}", "'str object' has no attribute 'nothing'"),
        ("{{ answers.pop('a') }}", "access to attribute 'pop' of 'dict' object is unsafe"),
    ],
)
def test_sandbox_holds_while_rendering(template: str, problem: str) -> None:
    check_template(template)
    with pytest.raises(AggregationError) as refusal:
        render_template(template, question="__class__", inputs={}, answers={"a": "A"})
    assert str(refusal.value).startswith("template: ")
    assert problem in str(refusal.value)


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{{ answers.a }} {{ answers['b-2'] }} {{ inputs.c }}", {"a", "b-2"}),
        ("{% for name, text in answers.items() %}{{ text.title }}{% endfor %}", set()),
        ("{{ answers.a.upper() }}{% if answers.b %}{% endif %}", {"a", "b"}),
        ("{{ answers[question] }} {{ question.answers }}", set()),
    ],
)
def test_names_that_a_template_reads_are_known_before_it_renders(template: str, names: set[str]) -> None:
    assert template_references(template, "answers") == names
