"""A GGUF loaded into this process: llama.cpp's model and context, tokens in and out."""

import ctypes
import os
from collections import deque
from functools import lru_cache

import llama_cpp
import numpy as np
import numpy.typing as npt

from llm_core.call_params import LoadParams
from llm_core.chat_template import ChatTemplate
from llm_core.errors import ModelLoadError, ModelOutOfMemory
from llm_core.out_of_memory import is_out_of_memory
from llm_core.prompt_lookup import MAX_DRAFT

BATCH_TOKENS = 512
"""Most tokens in one decode call; llama.cpp's own default for a micro-batch."""

_KV_TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2}  # ggml_type of ggml.h
FLASH_ATTENTION = {None: -1, False: 0, True: 1}  # llama_flash_attn_type of llama.h; -1 is auto
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
_errors: deque[str] = deque(maxlen=20)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def keep_errors(level: int, text: bytes, _: object) -> None:
    if level == _ERROR_LEVEL:
        _errors.append(" ".join(text.decode("utf-8", "replace").split()))
        os.write(2, text)  # ggml's CUDA errors are logged and then abort: only stderr outlives that


class LlamaModel:
    """Model and context for `load.sequences` answers of up to `load.n_ctx` tokens each.

    Raises:
        ModelLoadError: with what llama.cpp said.
    """

    def __init__(self, load: LoadParams, *, dry_run: bool = False) -> None:
        """With `dry_run` nothing is allocated: llama.cpp only reckons what it would."""
        llama_cpp.llama_log_set(keep_errors, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = load.n_gpu_layers
        if dry_run:
            params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE  # mmap with no_alloc aborts
        model = llama_cpp.llama_model_load_from_file(load.path.encode(), params)
        if not model:
            raise load_error(f"llama.cpp cannot load {load.path}: {first_error()}")
        self.model = model
        self.vocab = llama_cpp.llama_model_get_vocab(model)
        self.can_take_back = not (llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model))
        """Whether single tokens can be taken out of a sequence again."""
        self.context = self._make_context(load)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self._logits_type = ctypes.POINTER(ctypes.c_float * self.n_vocab)
        template = llama_cpp.llama_model_chat_template(model, None)
        self.template = ChatTemplate(
            template.decode("utf-8", "replace") if template else None,
            bos=self._special(llama_cpp.llama_vocab_bos(self.vocab)),
            eos=self._special(llama_cpp.llama_vocab_eos(self.vocab)),
        )

    def _make_context(self, load: LoadParams) -> object:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = load.context_cells
        params.n_seq_max = load.sequences
        params.n_batch = params.n_ubatch = min(BATCH_TOKENS, params.n_ctx)
        # So many are read at once; the default reserves logits for a whole batch.
        params.n_outputs_max = min(params.n_ubatch, max(load.sequences, 1 + MAX_DRAFT))
        params.type_k = params.type_v = _KV_TYPES[load.kv_type]
        params.flash_attn_type = FLASH_ATTENTION[load.flash_attention]
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise load_error(
                f"llama.cpp cannot make a context of {load.sequences} × {load.n_ctx} tokens for {load.path}: "
                f"{first_error()}; lower n_ctx"
            )
        return context

    def tokenize(self, prompt: str) -> list[int]:
        """Tokens of a rendered prompt; special tokens in it are recognised, none are added."""
        text = prompt.encode()
        room = len(text) + 2
        tokens = (llama_cpp.llama_token * room)()
        # A rendered chat template holds its own BOS; add_special would double it.
        n = llama_cpp.llama_tokenize(self.vocab, text, len(text), tokens, room, False, True)
        if n < 0:
            raise ValueError(f"the prompt of {len(text)} bytes cannot be tokenized")
        return list(tokens[:n])

    def use_threads(self, threads: int) -> None:
        """Decode with this many threads from the next step on."""
        llama_cpp.llama_set_n_threads(self.context, threads, threads)

    @lru_cache(maxsize=65536)  # noqa: B019  one model lives as long as its process
    def piece(self, token: int) -> bytes:
        """The bytes of one token; control tokens are empty."""
        return self._piece(token, special=False)

    def logits(self, output_index: int) -> "npt.NDArray[np.float32]":
        """Of one output of the last decode: a view of llama.cpp's own array, by token."""
        pointer = llama_cpp.llama_get_logits_ith(self.context, output_index)
        return np.frombuffer(ctypes.cast(pointer, self._logits_type).contents, np.float32)

    def last_error(self) -> str:
        """The latest error that llama.cpp logged."""
        return _errors[-1] if _errors else "no reason given"

    def is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def _piece(self, token: int, *, special: bool) -> bytes:
        room = 128
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def _special(self, token: int) -> str:
        return "" if token < 0 else self._piece(token, special=True).decode("utf-8", "replace")


def load_error(message: str) -> ModelLoadError | ModelOutOfMemory:
    return ModelOutOfMemory(message) if is_out_of_memory(" ".join(_errors)) else ModelLoadError(message)


def first_error() -> str:
    """llama.cpp's words that say most: the most specific error comes first in its log."""
    return _errors[0] if _errors else "no reason given"


def forget_errors() -> None:
    """What was logged so far is not what the next thing fails by."""
    _errors.clear()


def llama_cpp_build() -> str:
    """The versions that decide what tokens come: llama-cpp-python's, and llama.cpp's system line."""
    system = " ".join(llama_cpp.llama_print_system_info().decode().split())
    return f"llama-cpp-python {llama_cpp.__version__}; {system}"
