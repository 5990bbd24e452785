"""The sampler chain of one answer: how its next token is drawn from the logits."""

import ctypes
from collections.abc import Callable
from math import inf

import llama_cpp

from llm_core.call_params import BAN, SamplingParams

PENALTY_WINDOW = 64
"""Tokens that `repeat_penalty` looks back over (llama.cpp's `penalty_last_n`)."""


def make_sampler(sampling: SamplingParams, seed: int, n_vocab: int, tokenize: Callable[[str], list[int]]) -> object:
    """llama.cpp's samplers in llama.cpp's own order: bias, penalties, top-k, top-p, min-p, temperature, draw.

    Args:
        tokenize: text to tokens, for `logit_bias`.
    """
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

    def add(sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(chain, sampler)

    if sampling.logit_bias:
        add(_bias(sampling, n_vocab, tokenize))
    if sampling.repeat_penalty != 1.0:
        add(llama_cpp.llama_sampler_init_penalties(n_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0))
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


def _bias(sampling: SamplingParams, n_vocab: int, tokenize: Callable[[str], list[int]]) -> object:
    biases = {token: bias for text, bias in sampling.logit_bias for token in tokenize(text)}
    array = (llama_cpp.llama_logit_bias * len(biases))()
    for at, (token, bias) in enumerate(biases.items()):
        array[at].token, array[at].bias = token, -inf if bias <= BAN else bias
    return llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), array)
