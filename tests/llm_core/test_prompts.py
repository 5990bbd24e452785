"""The text a model is given, and the text a stage hands on."""

import pytest

from llm_core.prompts import chat, stage_output, user_message


@pytest.mark.parametrize(
    ("inputs", "instructions", "message"),
    [
        ({}, None, "Why?"),
        ({}, "Be brief.", "Be brief.\n\nQuestion:\nWhy?"),
        ({"draft": "So."}, None, "Question:\nWhy?\n\ndraft:\nSo."),
        ({"b": "2", "a": "1"}, "Go.", "Go.\n\nQuestion:\nWhy?\n\nb:\n2\n\na:\n1"),
    ],
)
def test_user_message_holds_instructions_question_and_inputs_in_order(
    inputs: dict[str, str], instructions: str | None, message: str
) -> None:
    assert user_message("Why?", inputs, instructions) == message


@pytest.mark.parametrize("nothing", [None, ""])
def test_chat_without_system_prompt_is_the_user_message_alone(nothing: str | None) -> None:
    assert chat(nothing, "Hi") == (("user", "Hi"),)


def test_chat_with_system_prompt_begins_with_it() -> None:
    assert chat("You are kind.", "Hi") == (("system", "You are kind."), ("user", "Hi"))


@pytest.mark.parametrize(
    ("mode", "inputs", "output"),
    [
        ("answer_only", {"a": "one"}, "So."),
        ("question_and_answer", {"a": "one"}, "Question: Why?\n\nAnswer: So."),
        ("input_plus_answer", {"b": "two", "a": "one"}, "two\n\none\n\nSo."),
        ("input_plus_answer", {}, "Why?\n\nSo."),
    ],
)
def test_stage_hands_on_what_its_output_mode_says(mode: str, inputs: dict[str, str], output: str) -> None:
    assert stage_output(mode, "Why?", inputs, "So.") == output
