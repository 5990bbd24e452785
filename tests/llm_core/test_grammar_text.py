"""Grammars in Lark and GBNF."""

import pytest

from llm_core.closing import byte_matcher
from llm_core.grammar_text import text_grammar


def accepts(grammar: str, text: str) -> bool:
    matcher = byte_matcher(text_grammar(grammar))
    taken = matcher.try_consume_tokens(list(text.encode()))
    return bool(taken == len(text.encode()) and matcher.is_accepting())


GBNF = 'root ::= move ("," " "? move)*\nmove ::= [a-h] [1-8] # a square\n'
LARK = 'start: move ("," " "? move)*\nmove: /[a-h][1-8]/ // a square\n'


@pytest.mark.parametrize("grammar", [GBNF, LARK])
def test_both_notations_hold_a_text_to_the_same(grammar: str) -> None:
    assert accepts(grammar, "e4, d5,c6")
    assert not accepts(grammar, "e9")
    assert not accepts(grammar, "e4,")


def test_escapes_of_gbnf_mean_their_letters() -> None:
    grammar = r'root ::= "\u0041BC" [\x30-\x32] "\u00e9\n"'
    assert accepts(grammar, "ABC1é\n")
    assert not accepts(grammar, "\u41bc1é\n")


def test_lark_may_hold_a_json_schema() -> None:
    assert accepts('start: "Answer: " answer\nanswer: %json {"type": "integer"}', "Answer: 12")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('start: "a" | b', 'line 1, column 8: unknown name: "b"'),
        ('start: "a"\nb: ( "x"', "line 2, column 9: Expected token ')'"),
        ("start: /(?=a)b/", "line 1, column 8: invalid regex"),
        ('start: %json {"uniqueItems": true}', "line 1, column 8: failed to compile JSON schema: Unimplemented keys"),
        ("start: <|special|>", "line 1, column 8: unknown special token"),
        ("root ::= foo", "GBNF: Rule 'foo' not found"),
        ('item ::= "a"', "GBNF: No 'root' rule found"),
        ('root ::= "a"\nb ::= (', "GBNF: "),
        ("", "Empty grammar"),
        ("hello", "line 1, column 6: Expected token ':'"),
    ],
)
def test_grammar_that_is_none_is_one_line_with_its_place(grammar: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  the message is what is tested
        text_grammar(grammar)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
