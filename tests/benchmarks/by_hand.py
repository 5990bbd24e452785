"""How one model is loaded and asked with llama-cpp-python, LangChain and Haystack, all of them set alike."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core.machine import physical_cores

N_CTX, N_TOKENS = 1024, 64
CORES = physical_cores()


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int
    completion_tokens: int


Ask = Callable[[str], Answer]
Load = Callable[[Path], AbstractContextManager[Ask]]


def _answer(text: str, usage: dict[str, Any]) -> Answer:
    """The text as gguf-flow hands it on: without the space around it."""
    return Answer(text.strip(), usage["prompt_tokens"], usage["completion_tokens"])


@contextmanager
def llama_cpp_python(path: Path) -> Iterator[Ask]:
    from llama_cpp import Llama

    threads = {"n_threads": CORES, "n_threads_batch": CORES}
    # verbose=False would swap stdout and stderr away at every call; make_variants has silenced the log.
    model = Llama(str(path), n_ctx=N_CTX, flash_attn=True, verbose=True, **threads)

    def ask(message: str) -> Answer:
        chat = [{"role": "user", "content": message}]
        response = model.create_chat_completion(chat, temperature=0, max_tokens=N_TOKENS)
        return _answer(response["choices"][0]["message"]["content"], response["usage"])

    yield ask
    model.close()


@contextmanager
def langchain(path: Path) -> Iterator[Ask]:
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_core.messages import HumanMessage

    model = ChatLlamaCpp(
        model_path=str(path),
        n_ctx=N_CTX,
        n_threads=CORES,
        n_batch=512,  # llama-cpp-python's own; ChatLlamaCpp's 8 would make it read prompts far slower
        rope_freq_base=0.0,  # the file's own; ChatLlamaCpp's 10000 would replace it by another
        rope_freq_scale=0.0,
        repeat_penalty=1.0,  # ChatLlamaCpp's 1.1 would draw other tokens
        temperature=0,
        max_tokens=N_TOKENS,
        streaming=False,  # with its default of True the tokens are not counted
        model_kwargs={"flash_attn": True, "n_threads_batch": CORES},
    )

    def ask(message: str) -> Answer:
        response = model.invoke([HumanMessage(message)])
        return _answer(response.content, response.response_metadata["token_usage"])

    yield ask
    model.client.close()


@contextmanager
def haystack(path: Path) -> Iterator[Ask]:
    from haystack.dataclasses import ChatMessage
    from haystack_integrations.components.generators.llama_cpp import LlamaCppChatGenerator

    model = LlamaCppChatGenerator(
        str(path),
        n_ctx=N_CTX,
        model_kwargs={"flash_attn": True, "n_threads": CORES, "n_threads_batch": CORES, "verbose": True},
        generation_kwargs={"temperature": 0, "max_tokens": N_TOKENS},
    )
    model.warm_up()  # loads

    def ask(message: str) -> Answer:
        (reply,) = model.run([ChatMessage.from_user(message)])["replies"]
        return _answer(reply.text, reply.meta["usage"])

    yield ask
    model.close()


WAYS: dict[str, Load] = {"llama-cpp-python": llama_cpp_python, "LangChain": langchain, "Haystack": haystack}
