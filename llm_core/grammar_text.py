"""A grammar in Lark or GBNF as one for llguidance."""

import re
from functools import lru_cache

from llm_core.closing import byte_matcher, byte_tokenizer
from llm_core.constraint_errors import guarded, one_line
from llm_core.errors import ConstraintError

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")


@lru_cache(maxsize=256)
def text_grammar(text: str) -> str:
    """The grammar of `text`; what has `root ::= …` is GBNF, all else Lark.

    Raises:
        ValueError: one line, with the line in the grammar where there is one.
    """
    from llguidance import LLMatcher

    is_gbnf = bool(_GBNF_RULE.search(text))
    lark = _to_lark(text) if is_gbnf else text
    try:
        with guarded("llguidance"):
            grammar = LLMatcher.grammar_from_lark(lark)
            _, problems = LLMatcher.validate_grammar_with_warnings(grammar, byte_tokenizer())
            if not problems:
                byte_matcher(grammar)
                return grammar
            problem = _gist(problems[0])
    except ConstraintError as error:
        problem = str(error)
    raise ValueError(f"as Lark: {problem}" if is_gbnf else problem)


def _gist(problem: str) -> str:
    """Without the picture of the grammar that llguidance draws."""
    said = one_line(re.split(r"\n\s*\d+ \| ", problem)[0])
    return re.sub(r"^(?:at )?(\d+)\((\d+)\): ", r"line \1, column \2: ", said)


def _to_lark(text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(_ESCAPE.sub(_character, text))
    except Exception as error:  # it raises nothing narrower
        raise ValueError(f"GBNF: {one_line(str(error))}") from None


def _character(escape: re.Match[str]) -> str:
    """The letter itself, where that is no sign of the grammar's: the converter loses zeros of \\u0041."""
    character = chr(int(next(filter(None, escape.groups())), 16))
    return character if character.isalnum() else escape[0]
