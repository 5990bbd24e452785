"""Answers held to a grammar: which token may come next, as a mask on the model's logits."""

from collections import OrderedDict, deque
from math import inf
from typing import Any

import numpy as np

from llm_core.call_params import Constraint
from llm_core.closing import closed
from llm_core.constraint_errors import guarded, one_line
from llm_core.errors import ConstraintError
from llm_core.llama_model import LlamaModel
from llm_core.sampler import Sampler
from llm_core.text_stream import TextStream

KEPT_GRAMMARS = 64
"""Compiled grammars that are kept for later answers."""
THINK, THINK_END = b"<think>", b"</think>"


class Guides:
    """The grammars in use with one loaded model; answers that share one share its compilation."""

    def __init__(self, llama: LlamaModel) -> None:
        self._llama = llama
        self._masks: _Masks | None = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def guide(self, constraint: Constraint, prompt: str, room: int) -> "Guide":
        """The way of one answer through its grammar.

        Args:
            room: tokens there are for it.

        Raises:
            ConstraintError: llguidance cannot compile the grammar for this model.
        """
        with guarded("the grammar cannot be compiled for this model"):
            self._masks = self._masks or _Masks(self._llama)
            matcher = self._matcher(self._masks, constraint.grammar).deep_copy()
            return Guide(self._masks, constraint, matcher, prompt, room)

    def _matcher(self, masks: "_Masks", grammar: str) -> Any:
        if grammar not in self._compiled:
            self._compiled[grammar] = masks.matcher(grammar)
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar]


class Guide:
    """One answer's way through its grammar, after free text if it may think first."""

    def __init__(self, masks: "_Masks", constraint: Constraint, matcher: Any, prompt: str, room: int) -> None:
        self.thinking = constraint.think
        self.ended = False
        """Whether the answer is whole: nothing may follow, or the model has ended where it may."""
        self.truncated = False
        self.logprobs: list[tuple[int, float]] = []
        """As in `GenerateResult`; without those of what closes it."""
        self._masks, self._constraint, self._matcher = masks, constraint, matcher
        self._text = bytearray()
        self._thought = bytearray(THINK if prompt.rstrip().endswith("<think>") else b"")  # by the chat template
        self._thoughts_left = room // 2
        self._forced: deque[int] = deque()

    @property
    def reasoning(self) -> str | None:
        """The free text before the answer."""
        thought = bytes(self._thought).partition(THINK_END)[0].replace(THINK, b"")
        return thought.decode("utf-8", "replace").strip() or None

    def next_token(self, sampler: Sampler, output_index: int) -> int:
        """Draw a token from those that may come next.

        Raises:
            ConstraintError: none may, or the mask failed; the answer must not go on.
        """
        with guarded("the mask failed"):
            if self.thinking:
                return self._next_thought(sampler, output_index)
            self._masks.apply(self._matcher, output_index)
            total = self._masks.log_total(output_index) if self._constraint.logprobs else None
            token = sampler.draw(output_index)
            self._take(token)
            if total is not None and not self._masks.llama.is_end(token):
                self.logprobs.append((len(self._text), self._masks.logit(token, output_index) - total))
            return token

    def close(self, stream: TextStream, max_tokens: int) -> str:
        """The end of the answer's text, as far as `stream` has not given it out; one that was cut off gets an end.

        Raises:
            ConstraintError: it was cut off, and that is to be an error, or no end was found.
        """
        with guarded("the answer cannot be closed"):
            return stream.complete(self._whole(stream, max_tokens).decode())

    def _whole(self, stream: TextStream, max_tokens: int) -> bytes:
        written = bytes(self._text)
        cut = stream.text.encode() if stream.stopped else written
        if self.ended and not stream.stopped:
            return written
        whole = closed(self._constraint.grammar, cut)
        self.truncated = not stream.stopped or whole not in (cut, written)
        if self.truncated and self._constraint.on_truncation == "error":
            where = f"at max_tokens {max_tokens} or the end of its context; raise that"
            where = "by a stop string; take that away" if stream.stopped else where
            raise ConstraintError(f"the answer was cut off {where}, or set on_truncation: complete")
        return whole

    def _take(self, token: int) -> None:
        if self._masks.llama.is_end(token):
            self.ended = bool(self._matcher.is_accepting())
        elif self._matcher.consume_token(token):
            self._text += self._masks.llama.piece(token)
            self.ended = bool(self._matcher.is_stopped() and not self._matcher.is_error())
            return
        if not self.ended:
            said = one_line(self._matcher.get_error()) or "the model ended too early"
            raise ConstraintError(f"a token was drawn that the grammar forbids: {said}")

    def _next_thought(self, sampler: Sampler, output_index: int) -> int:
        """A token of the free text.

        It goes on to `</think>`, to where the model would end, or until half the room is used; then what closes it is
        put in for the model to read.
        """
        llama = self._masks.llama
        if self._forced:
            token = self._forced.popleft()
            sampler.accept(token)
            self.thinking = bool(self._forced)
            return token
        token = sampler.draw(output_index)
        self._thoughts_left -= 1
        is_end, piece = llama.is_end(token), llama.piece(token)
        self._thought += b"" if is_end else piece
        _, tag, after = self._thought.partition(THINK_END)
        if tag and not after.strip():
            self.thinking = False
        elif tag:  # the token goes on behind the tag, which is no free text any more
            return self._force(piece[: len(piece) - len(after)] + b"\n\n", sampler, output_index)
        elif is_end or self._thoughts_left <= 0:
            closing = b"\n" + THINK_END + b"\n\n" if THINK in self._thought else b"\n\n"
            if is_end:
                return self._force(closing, sampler, output_index)
            self._forced.extend(llama.tokenize(closing.decode()))
        return token

    def _force(self, text: bytes, sampler: Sampler, output_index: int) -> int:
        self._forced.extend(self._masks.llama.tokenize(text.decode("utf-8", "replace")))
        return self._next_thought(sampler, output_index)


class _Masks:
    """What llguidance needs of a loaded model. It takes half a second, and only constrained answers need it."""

    def __init__(self, llama: LlamaModel) -> None:
        from llguidance.llamacpp import lltokenizer_from_vocab

        self.llama = llama
        ends = [token for token in range(llama.n_vocab) if llama.is_end(token)]
        self._tokenizer = lltokenizer_from_vocab(llama.vocab, eos_token=ends)
        self._bits = np.zeros((llama.n_vocab + 31) // 32, dtype=np.uint32)

    def matcher(self, grammar: str) -> Any:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ConstraintError(one_line(matcher.get_error()))
        return matcher

    def apply(self, matcher: Any, output_index: int) -> None:
        """Take what may not come next out of the logits of one output."""

        matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        allowed = np.unpackbits(self._bits.view(np.uint8), count=self.llama.n_vocab, bitorder="little")
        if matcher.is_error() or not allowed.any():
            raise ConstraintError(f"no token may come next: {one_line(matcher.get_error()) or 'a dead end'}")
        np.copyto(self.llama.logits(output_index), -inf, where=allowed == 0)

    def log_total(self, output_index: int) -> float:
        """What a logit must be less to be a log probability among what `apply` has left."""

        logits = self.llama.logits(output_index)
        largest = float(logits.max())
        return largest + float(np.log(np.exp(logits - largest).sum()))

    def logit(self, token: int, output_index: int) -> float:
        return float(self.llama.logits(output_index)[token])
