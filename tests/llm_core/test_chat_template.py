"""Templates that want a message's text in parts."""

from llm_core.chat_template import ChatTemplate

OF_PARTS = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's."""
OF_TEXTS = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n{% endfor %}"
TRIMMING = "{% for message in messages %}{{ message['content'].strip() | upper }}{% endfor %}"


def test_template_that_leaves_a_text_out_gets_it_in_parts() -> None:
    chat = [("system", "Be kind."), ("user", "What is it?")]
    told = "System: Be kind.<end_of_utterance>\nUser: What is it?<end_of_utterance>\nAssistant:"
    assert ChatTemplate(OF_PARTS, "", "").render(chat) == f"<|im_start|>{told}"


def test_template_that_takes_texts_gets_texts() -> None:
    assert ChatTemplate(OF_TEXTS, "", "").render([("user", "  What is it?\n")]) == "user: What is it?\n"


def test_template_that_changes_a_text_and_refuses_parts_is_followed() -> None:
    assert ChatTemplate(TRIMMING, "", "").render([("user", "What is it? ")]) == "WHAT IS IT?"
