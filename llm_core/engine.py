"""Batched decoding: answers join and leave one llama.cpp context between its decode steps."""

import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import llama_cpp

from llm_core.call_params import MAX_SEED, LoadParams
from llm_core.engine_answer import Answer, Event, Failed, Finished, Started, Token
from llm_core.errors import (
    ConstraintError,
    ContextOverflow,
    GenerationTimeout,
    GgufFlowError,
    InputError,
    ModelCrashed,
    ModelOutOfMemory,
)
from llm_core.generation import GenerateRequest
from llm_core.guide import Guides
from llm_core.idle_cores import IdleCores
from llm_core.kv_cache import MIN_SHARED, KVCache, common_prefix
from llm_core.llama_model import BATCH_TOKENS, LlamaModel, llama_cpp_build
from llm_core.out_of_memory import is_out_of_memory
from llm_core.prompt_pieces import Prompt
from llm_core.sampler import Sampler
from llm_core.text_stream import TextStream, split_reasoning

if TYPE_CHECKING:
    from llm_core.vision import Vision

SPLIT_CONTEXT = 256
"""With so many tokens behind it, llama.cpp sums the flash attention of one token in as many parts as there are
threads, and rounds accordingly (`use_split_kv_path` in ggml-cpu/ops.cpp: 512 cells; contexts are padded to 256)."""


class Engine:
    """`submit` requests, call `step` while `busy`; every request ends in one `Finished` or `Failed`."""

    def __init__(self, load: LoadParams) -> None:
        started = time.perf_counter()
        self.load, self._threads, self._idle_cores = load, 1, IdleCores()
        self.llama = LlamaModel(load)
        self._vision = _vision(load, self.llama)
        self.build = llama_cpp_build()
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._kv = KVCache(self.llama.context, load.sequences)
        self._guides = Guides(self.llama)
        self._waiting: list[Answer] = []
        self._active: list[Answer] = []
        self._failed: list[Failed] = []
        self.load_s = time.perf_counter() - started

    @property
    def threads(self) -> int:
        """To decode with from the next step on; the caller's to keep within the physical cores."""
        return self._threads

    @threads.setter
    def threads(self, threads: int) -> None:
        self._threads = threads
        self._idle_cores.restart()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._active or self._failed)

    def submit(self, id: int, request: GenerateRequest) -> None:
        """Queue a request; one that cannot run fails at the next step."""
        arrived = time.perf_counter()
        try:
            prompt = self._prompt(request)
            n_tokens = len(prompt.tokens)
            if n_tokens >= self.load.n_ctx:
                raise ContextOverflow(
                    f"the prompt has {n_tokens} tokens and n_ctx is {self.load.n_ctx}; raise n_ctx or shorten it"
                )
            sampling, guide = request.sampling, None
            if request.constraint:
                room = min(sampling.max_tokens, self.load.n_ctx - n_tokens)
                guide = self._guides.guide(request.constraint, prompt.text, room)
        except GgufFlowError as error:
            self._failed.append(Failed(id, error))
            return
        seed = random.SystemRandom().randrange(MAX_SEED + 1) if sampling.seed is None else sampling.seed
        stream = TextStream(() if guide and guide.thinking else sampling.stop)
        request = replace(request, images=())  # they are in the prompt
        self._waiting.append(Answer(id, request, prompt, seed, arrived, stream, guide))

    def _prompt(self, request: GenerateRequest) -> Prompt:
        if not request.images:
            text = self.llama.template.render(request.messages)
            return Prompt(text, self.llama.tokenize(text))
        if self._vision is None:
            raise InputError("it cannot see images; give it an 'mmproj' in models.yaml")
        return self._vision.prompt(request.messages, request.images)

    def cancel(self, id: int) -> None:
        """Drop a request; it gives no further event."""
        self._waiting = [answer for answer in self._waiting if answer.id != id]
        for answer in [answer for answer in self._active if answer.id == id]:
            self._leave(answer)

    def step(self) -> list[Event]:
        """One decode call for all answers on their way."""
        if not self._active:
            self._idle_cores.restart()
        events: list[Event] = [*self._failed, *self._expired(), *self._join_waiting()]
        self._failed.clear()
        if not self._active:
            return events
        self._close_gaps()
        self.llama.use_threads(self._threads_now())
        events += self._see()
        self._fill_batch()
        if self._batch.n_tokens == 0:
            return events
        status = llama_cpp.llama_decode(self.llama.context, self._batch)
        if status != 0:
            return events + self._fail(list(self._active), f"llama_decode returned {status}")
        for answer in list(self._active):
            if answer.output_index >= 0:
                events += self._take_tokens(answer)
        return events

    def _threads_now(self) -> int:
        """No more than there are idle cores. Only who decodes alone keeps to its own number in a long context."""
        first = self._active[0]
        if not first.request.sampling.alone:
            return min(self.threads, self._idle_cores.count())
        threads = min(self.threads, first.request.threads)
        return threads if first.n_past >= SPLIT_CONTEXT else min(threads, self._idle_cores.count())

    def _see(self) -> list[Event]:
        """Put one image into the KV cache; the answers beside it go on between one image and the next."""
        for answer in self._active:
            image = answer.image
            if image and answer.n_past == image.at:
                assert self._vision
                self._vision.use_threads(self._threads_now())
                status = self._vision.decode(image, answer.n_past + answer.shift, answer.sequence)
                if status != 0:
                    return self._fail([answer], f"an image could not be decoded ({status})")
                self._kv.held[answer.sequence] += answer.tokens[image.at : image.at + image.n_tokens]
                answer.n_past += image.n_tokens
                answer.shift += image.n_positions - image.n_tokens
                answer.prompt.images.pop(0)
                break
        return []

    def _join_waiting(self) -> list[Event]:
        """In order of arrival. Who is to decode alone waits until all have left, and all behind it wait for it."""
        events: list[Event] = []
        for answer in list(self._waiting):
            alone = answer.request.sampling.alone
            blocked = self._active and (alone or self._active[0].request.sampling.alone)
            if blocked or not self._kv.has_room:
                break
            if not self._will_share(answer):
                self._waiting.remove(answer)
                self._join(answer, share=not alone)
                events.append(Started(answer.id))
        return events

    def _will_share(self, answer: Answer) -> bool:
        """Whether someone is just prefilling what `answer` begins with: then it waits, and has it copied."""
        beginning = answer.prompt.beginning
        coming = [common_prefix(a.tokens, beginning) for a in self._active if a.n_past < len(a.tokens)]
        return bool(coming) and max(coming) - self._kv.shared(beginning) > MIN_SHARED

    def _join(self, answer: Answer, *, share: bool) -> None:
        answer.started = time.perf_counter()
        answer.sequence, answer.n_cached = self._kv.take(answer.prompt.beginning, share=share)
        answer.n_past = answer.n_cached
        answer.sampler = Sampler(answer.request.sampling, answer.seed, self.llama)
        self._active.append(answer)

    def _leave(self, answer: Answer, *, clear: bool = False) -> None:
        self._active.remove(answer)
        self._kv.leave(answer.sequence, clear=clear)
        if answer.sampler:
            answer.sampler.close()

    def _close_gaps(self) -> None:
        while moved := self._kv.close_gap():
            answer = next(answer for answer in self._active if answer.sequence == moved[0])
            answer.sequence = moved[1]

    def _fill_batch(self) -> None:
        """A token of each answer that decodes, and a chunk of the prompts; neighbours next to each other.

        All prompts advance by as many tokens as the longest-waiting one, because llama.cpp takes equal shares in one
        micro-batch.
        """
        decoding = [answer for answer in self._active if answer.completion]
        room = BATCH_TOKENS - len(decoding)
        chunks = {answer.id: 1 for answer in decoding}
        share = 0
        for answer in self._active:
            if not answer.completion:
                pending = (answer.image.at if answer.image else len(answer.tokens)) - answer.n_past
                share = share or pending
                chunks[answer.id] = min(share, room, pending)
                room -= chunks[answer.id]
        self._batch.n_tokens = 0
        for answer in sorted(self._active, key=lambda a: a.sequence):
            self._add_to_batch(answer, chunks[answer.id])

    def _add_to_batch(self, answer: Answer, n_tokens: int) -> None:
        pending = answer.completion[-1:] or answer.tokens[answer.n_past : answer.n_past + n_tokens]
        for token in pending[:n_tokens]:
            self._add_token(answer, token, answer.n_past)
            answer.n_past += 1
        answer.output_index, answer.draft = -1, []
        if n_tokens and answer.n_past >= len(answer.tokens):
            answer.output_index = self._batch.n_tokens - 1
            # Beside others a guess is no gain: llama.cpp takes unequal shares in several micro-batches.
            if len(self._active) == 1 and self.llama.can_take_back:
                answer.draft = answer.guess(self.load.n_ctx)
            for ahead, token in enumerate(answer.draft):
                self._add_token(answer, token, answer.n_past + ahead)
            for at in range(answer.output_index, self._batch.n_tokens):
                self._batch.logits[at] = 1

    def _add_token(self, answer: Answer, token: int, n_past: int) -> None:
        batch, at = self._batch, self._batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, n_past + answer.shift, 0
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, answer.sequence
        batch.n_tokens = at + 1
        self._kv.held[answer.sequence].append(token)

    def _take_tokens(self, answer: Answer) -> list[Event]:
        """Of one that has guessed, as many tokens as its guesses came true, and the one after them."""
        events = self._take_token(answer)
        if not answer.draft:
            return events
        sequence, n_past = answer.sequence, answer.n_past
        for guess in answer.draft:
            if answer not in self._active or answer.completion[-1] != guess:
                break
            answer.accept_guess()
            events += self._take_token(answer)
        answer.learn(answer.n_past - n_past)
        self._kv.cut(sequence, answer.n_past)
        return events

    def _take_token(self, answer: Answer) -> list[Event]:
        try:
            return self._take_drawn(answer)
        except ConstraintError as error:
            self._leave(answer)
            return [Failed(answer.id, error)]

    def _take_drawn(self, answer: Answer) -> list[Event]:
        guide, was_thinking = answer.guide, bool(answer.guide and answer.guide.thinking)
        assert answer.sampler
        if guide:
            token = guide.next_token(answer.sampler, answer.output_index)
        else:
            token = answer.sampler.draw(answer.output_index)
        answer.token_drawn()
        if self.llama.is_end(token):
            return self._finish(answer, "stop")
        answer.completion.append(token)
        text = answer.stream.push(self.llama.piece(token))
        events: list[Event] = [Token(answer.id, text, len(answer.completion))]
        if answer.stream.stopped or (guide and guide.ended):
            return events + self._finish(answer, "stop")
        if len(answer.completion) >= answer.request.sampling.max_tokens or answer.n_past >= self.load.n_ctx:
            return events + self._finish(answer, "length")
        if guide and was_thinking and not guide.thinking:
            answer.stream = TextStream(answer.request.sampling.stop)
        return events

    def _finish(self, answer: Answer, reason: str) -> list[Event]:
        if not answer.guide:
            self._leave(answer)
            answer.stream.push(b"", last=True)
            text, reasoning = answer.stream.text.strip(), None
            if answer.request.strip_reasoning:
                opened = "<think>" if answer.prompt.text.rstrip().endswith("<think>") else ""  # by the chat template
                text, reasoning = split_reasoning(opened + text)
            return [self._finished(answer, reason, text, reasoning)]
        stream = TextStream() if answer.guide.thinking else answer.stream
        rest = answer.guide.close(stream, answer.request.sampling.max_tokens)
        self._leave(answer)
        events: list[Event] = [Token(answer.id, rest, len(answer.completion))] if rest else []
        return [*events, self._finished(answer, reason, stream.text, answer.guide.reasoning)]

    def _finished(self, answer: Answer, reason: str, text: str, reasoning: str | None) -> Finished:
        return answer.finished(reason, text, reasoning, self.build, self.load_s, self.load.gpu)

    def _expired(self) -> list[Event]:
        now = time.perf_counter()
        events: list[Event] = []
        for answer in list(self._active):
            timeout_s = answer.request.sampling.timeout_s
            if timeout_s is not None and now - answer.started > timeout_s:
                self.cancel(answer.id)
                done = f"{len(answer.completion)} tokens were done"
                events.append(Failed(answer.id, GenerationTimeout(f"no end after timeout_s {timeout_s:g}; {done}")))
        return events

    def _fail(self, answers: list[Answer], reason: str) -> list[Event]:
        reason = f"{reason}: {self.llama.last_error()}"
        error_class = ModelOutOfMemory if is_out_of_memory(reason) else ModelCrashed
        events: list[Event] = [Failed(answer.id, error_class(reason)) for answer in answers]
        for answer in answers:
            self._leave(answer, clear=True)
        return events


def _vision(load: LoadParams, llama: LlamaModel) -> "Vision | None":
    if load.mmproj is None:
        return None
    from llm_core.vision import Vision  # loads another library

    return Vision(load, llama)
