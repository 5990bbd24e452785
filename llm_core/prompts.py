"""What a model is asked, and what a stage hands on."""

from collections.abc import Mapping

from llm_core.errors import InputError


def check_question(question: str) -> None:
    """Refuse a question that cannot be asked.

    Raises:
        InputError: it is empty, or not text.
    """
    if not question.strip():
        raise InputError("the question is empty; give some text to answer")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise InputError("the question is not valid UTF-8 text") from None


def user_message(question: str, inputs: Mapping[str, str], instructions: str | None = None) -> str:
    """Instructions, the question, and each earlier stage's text under its id; a lone question stands as it is."""
    if not inputs and not instructions:
        return question
    parts = [instructions] if instructions else []
    parts.append(f"Question:\n{question}")
    parts += [f"{stage}:\n{text}" for stage, text in inputs.items()]
    return "\n\n".join(parts)


def chat(system_prompt: str | None, message: str) -> tuple[tuple[str, str], ...]:
    """Messages as (role, content) pairs."""
    system = (("system", system_prompt),) if system_prompt else ()
    return (*system, ("user", message))


def stage_output(mode: str, question: str, inputs: Mapping[str, str], answer: str) -> str:
    """What later stages read of a stage, by its `output_mode`."""
    if mode == "question_and_answer":
        return f"Question: {question}\n\nAnswer: {answer}"
    if mode == "input_plus_answer":
        return "\n\n".join([*(inputs.values() or [question]), answer])
    return answer
