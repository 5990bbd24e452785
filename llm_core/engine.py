"""Batched decoding: answers join and leave one llama.cpp context between its decode steps."""

import ctypes
import os
import random
import time
from collections import deque
from dataclasses import dataclass, field

import llama_cpp

from llm_core.call_params import MAX_SEED, LoadParams, SamplingParams
from llm_core.errors import ContextOverflow, GenerationTimeout, GgufFlowError, ModelCrashed, ModelOutOfMemory
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.llama_model import BATCH_TOKENS, LlamaModel, llama_cpp_build
from llm_core.machine import peak_rss_bytes, process_vram_bytes
from llm_core.out_of_memory import is_out_of_memory
from llm_core.text_stream import TextStream, split_reasoning

PENALTY_WINDOW = 64
"""Tokens that `repeat_penalty` looks back over (llama.cpp's `penalty_last_n`)."""


@dataclass(frozen=True)
class Token:
    """New text of an answer, and how many tokens it has by now."""

    id: int
    text: str
    completion_tokens: int


@dataclass(frozen=True)
class Finished:
    id: int
    result: GenerateResult


@dataclass(frozen=True)
class Failed:
    id: int
    error: GgufFlowError


Event = Token | Finished | Failed


@dataclass
class _Answer:
    """One request on its way; `sequence` is its place in the context once it has one."""

    id: int
    request: GenerateRequest
    prompt: str
    tokens: list[int]
    seed: int
    arrived: float
    stream: TextStream
    sampler: object = None
    sequence: int = -1
    n_past: int = 0
    """Tokens of it in the KV cache."""
    completion: list[int] = field(default_factory=list)
    first_token: float = 0.0
    last_token: float = 0.0
    output_index: int = -1
    """Where in the batch its logits stand; -1 when it has none this step."""


class Engine:
    """`submit` requests, call `step` while `busy`; every request ends in one `Finished` or `Failed`."""

    def __init__(self, load: LoadParams) -> None:
        started = time.perf_counter()
        self.load, self.threads = load, 1
        self.llama = LlamaModel(load)
        self.build = llama_cpp_build()
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._memory = llama_cpp.llama_get_memory(self.llama.context)
        self._free = list(range(load.sequences))
        self._waiting: deque[_Answer] = deque()
        self._active: list[_Answer] = []
        self._failed: list[Failed] = []
        self.load_s = time.perf_counter() - started

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._active or self._failed)

    def submit(self, id: int, request: GenerateRequest) -> None:
        """Queue a request; one that cannot run fails at the next step."""
        arrived = time.perf_counter()
        self.threads = request.threads
        try:
            prompt = self.llama.template.render(request.messages)
            tokens = self.llama.tokenize(prompt)
            if len(tokens) >= self.load.n_ctx:
                raise ContextOverflow(
                    f"the prompt has {len(tokens)} tokens and n_ctx is {self.load.n_ctx}; raise n_ctx or shorten it"
                )
        except GgufFlowError as error:
            self._failed.append(Failed(id, error))
            return
        sampling = request.sampling
        seed = random.SystemRandom().randrange(MAX_SEED + 1) if sampling.seed is None else sampling.seed
        self._waiting.append(_Answer(id, request, prompt, tokens, seed, arrived, TextStream(sampling.stop)))

    def cancel(self, id: int) -> None:
        """Drop a request; it gives no further event."""
        self._waiting = deque(answer for answer in self._waiting if answer.id != id)
        for answer in [answer for answer in self._active if answer.id == id]:
            self._leave(answer)

    def step(self) -> list[Event]:
        """One decode call for all answers on their way."""
        events: list[Event] = [*self._failed, *self._expired()]
        self._failed.clear()
        while self._free and self._waiting:
            self._join(self._waiting.popleft())
        if not self._active:
            return events
        self._fill_batch()
        self.llama.use_threads(self.threads)
        status = llama_cpp.llama_decode(self.llama.context, self._batch)
        if status != 0:
            return events + self._fail_all(f"llama_decode returned {status}")
        for answer in list(self._active):
            if answer.output_index >= 0:
                events += self._take_token(answer)
        return events

    def _join(self, answer: _Answer) -> None:
        answer.sequence = self._free.pop()
        answer.sampler = _make_sampler(answer.request.sampling, answer.seed, self.llama.n_vocab)
        self._active.append(answer)

    def _leave(self, answer: _Answer) -> None:
        self._active.remove(answer)
        llama_cpp.llama_memory_seq_rm(self._memory, answer.sequence, -1, -1)
        llama_cpp.llama_sampler_free(answer.sampler)
        self._free.append(answer.sequence)

    def _fill_batch(self) -> None:
        """Next tokens of the decoding answers first, then as much of the waiting prompts as fits."""
        self._batch.n_tokens = 0
        for answer in sorted(self._active, key=lambda a: not a.completion):
            pending = answer.completion[-1:] or answer.tokens[answer.n_past :]
            room = BATCH_TOKENS - self._batch.n_tokens
            chunk = pending[:room]
            for token in chunk:
                self._add_to_batch(token, answer.n_past, answer.sequence)
                answer.n_past += 1
            answer.output_index = -1
            if chunk and len(chunk) == len(pending):
                answer.output_index = self._batch.n_tokens - 1
                self._batch.logits[answer.output_index] = 1

    def _add_to_batch(self, token: int, position: int, sequence: int) -> None:
        batch, at = self._batch, self._batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, 0
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.n_tokens = at + 1

    def _take_token(self, answer: _Answer) -> list[Event]:
        token = llama_cpp.llama_sampler_sample(answer.sampler, self.llama.context, answer.output_index)
        answer.last_token = time.perf_counter()
        answer.first_token = answer.first_token or answer.last_token
        if self.llama.is_end(token):
            return self._finish(answer, "stop")
        answer.completion.append(token)
        text = answer.stream.push(self.llama.piece(token))
        events: list[Event] = [Token(answer.id, text, len(answer.completion))]
        if answer.stream.stopped:
            return events + self._finish(answer, "stop")
        if len(answer.completion) >= answer.request.sampling.max_tokens or answer.n_past >= self.load.n_ctx:
            return events + self._finish(answer, "length")
        return events

    def _finish(self, answer: _Answer, reason: str) -> list[Event]:
        self._leave(answer)
        answer.stream.push(b"", last=True)
        text, reasoning = answer.stream.text.strip(), None
        if answer.request.strip_reasoning:
            opened = "<think>" if answer.prompt.rstrip().endswith("<think>") else ""  # by the chat template
            text, reasoning = split_reasoning(opened + text)
        n = len(answer.completion)
        decode_s = answer.last_token - answer.first_token
        result = GenerateResult(
            text=text,
            reasoning=reasoning,
            finish_reason=reason,
            build=self.build,
            prompt=answer.prompt,
            prompt_tokens=len(answer.tokens),
            completion_tokens=n,
            seed=answer.seed,
            peak_rss_bytes=peak_rss_bytes(),
            peak_vram_bytes=None if self.load.gpu is None else process_vram_bytes(os.getpid(), self.load.gpu),
            load_s=self.load_s,
            ttft_s=answer.first_token - answer.arrived,
            tpot_s=decode_s / (n - 1) if n > 1 else None,
            tokens_per_s=n / (answer.last_token - answer.arrived),
        )
        return [Finished(answer.id, result)]

    def _expired(self) -> list[Event]:
        now = time.perf_counter()
        events: list[Event] = []
        for answer in [*self._active, *self._waiting]:
            timeout_s = answer.request.sampling.timeout_s
            if timeout_s is not None and now - answer.arrived > timeout_s:
                self.cancel(answer.id)
                done = f"{len(answer.completion)} tokens were done"
                events.append(Failed(answer.id, GenerationTimeout(f"no end after timeout_s {timeout_s:g}; {done}")))
        return events

    def _fail_all(self, reason: str) -> list[Event]:
        reason = f"{reason}: {self.llama.last_error()}"
        error_class = ModelOutOfMemory if is_out_of_memory(reason) else ModelCrashed
        events: list[Event] = [Failed(answer.id, error_class(reason)) for answer in self._active]
        for answer in list(self._active):
            self._leave(answer)
        return events


def _make_sampler(sampling: SamplingParams, seed: int, n_vocab: int) -> object:
    """llama.cpp's samplers in llama.cpp's own order: penalties, top-k, top-p, min-p, temperature, draw."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())

    def add(sampler: object) -> None:
        llama_cpp.llama_sampler_chain_add(chain, sampler)

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
