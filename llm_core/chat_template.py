"""Messages to the exact prompt, by the chat template that the GGUF carries."""

from collections.abc import Sequence
from contextlib import suppress

from jinja2 import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from llm_core.errors import ModelLoadError

DEFAULT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}Answer:"
"""For a base model, whose GGUF carries no template: the texts as they are, then `Answer:`."""


class ChatTemplate:
    """Renders chats in llama-cpp-python's sandboxed jinja2 environment.

    Raises:
        ModelLoadError: the template is not valid jinja2.
    """

    def __init__(self, template: str | None, bos: str, eos: str) -> None:
        self.text = template or DEFAULT_TEMPLATE
        try:
            self._formatter = Jinja2ChatFormatter(self.text, eos_token=eos, bos_token=bos)
        except TemplateError as error:
            raise ModelLoadError(f"the chat template in the file is not valid: {error}") from None

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt. A template that refuses the system role gets its text at the head of the first message, and one
        that leaves texts out, as those of models that see may, gets them as lists of parts.

        Raises:
            ModelLoadError: the template refuses these messages.
        """
        try:
            return self._whole(messages)
        except (TemplateError, ValueError, TypeError) as refusal:
            if messages[0][0] != "system":
                raise ModelLoadError(f"the chat template in the file refuses this chat: {refusal}") from None
        (_, system), (role, first), *rest = messages
        return self.render([(role, f"{system}\n\n{first}"), *rest])

    def _whole(self, messages: Sequence[tuple[str, str]]) -> str:
        prompt, last = self._render(messages), messages[-1][1].strip()
        if last not in prompt:
            with suppress(TemplateError, ValueError, TypeError):
                in_parts = self._render([(role, [{"type": "text", "text": text}]) for role, text in messages])
                return in_parts if last in in_parts else prompt
        return prompt

    def _render(self, messages: Sequence[tuple[str, object]]) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        return str(self._formatter(messages=chat).prompt)
