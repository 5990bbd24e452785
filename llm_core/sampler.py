"""How the next token of one answer is drawn from the logits."""

import ctypes
from math import inf

import llama_cpp

from llm_core.call_params import BAN, SamplingParams
from llm_core.llama_model import LlamaModel

PENALTY_WINDOW = 64
"""Tokens that `repeat_penalty` looks back over (llama.cpp's `penalty_last_n`)."""


class Sampler:
    """llama.cpp's samplers in llama.cpp's own order: bias, penalties, top-k, top-p, min-p, temperature, draw.

    Where the likeliest token is all that is wanted, it is taken from the logits as they are: llama.cpp copies them
    first, which takes six times as long (3 % of the time of 16 answers decoded together).
    """

    def __init__(self, sampling: SamplingParams, seed: int, llama: LlamaModel) -> None:
        self._llama = llama
        likeliest = sampling.temperature == 0 and sampling.repeat_penalty == 1.0 and not sampling.logit_bias
        self._chain = None if likeliest else _chain(sampling, seed, llama)

    def draw(self, output_index: int) -> int:
        """The next token, from the logits of one output of the last decode."""
        if self._chain is None:
            return int(self._llama.logits(output_index).argmax())
        return int(llama_cpp.llama_sampler_sample(self._chain, self._llama.context, output_index))

    def accept(self, token: int) -> None:
        """Take a token for drawn that was put in."""
        if self._chain is not None:
            llama_cpp.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
            self._chain = None


def _chain(sampling: SamplingParams, seed: int, llama: LlamaModel) -> object:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

    def add(sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(chain, sampler)

    if sampling.logit_bias:
        add(_bias(sampling, llama))
    if sampling.repeat_penalty != 1.0:
        add(llama_cpp.llama_sampler_init_penalties(llama.n_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
    if sampling.temperature == 0:
        add(llama_cpp.llama_sampler_init_greedy())
        return chain
    if sampling.top_k > 0:
        add(llama_cpp.llama_sampler_init_top_k(sampling.top_k))
    add(llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1))
    add(llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1))
    add(llama_cpp.llama_sampler_init_temp(sampling.temperature))
    add(llama_cpp.llama_sampler_init_dist(ctypes.c_uint32(seed).value))
    return chain


def _bias(sampling: SamplingParams, llama: LlamaModel) -> object:
    biases = {token: bias for text, bias in sampling.logit_bias for token in llama.tokenize(text)}
    array = (llama_cpp.llama_logit_bias * len(biases))()
    for at, (token, bias) in enumerate(biases.items()):
        array[at].token, array[at].bias = token, -inf if bias <= BAN else bias
    return llama_cpp.llama_sampler_init_logit_bias(llama.n_vocab, len(biases), array)
