"""The sequences of a llama.cpp context: who sits where, and which prompts begin with tokens that are there already."""

from collections.abc import Sequence

import llama_cpp

MIN_SHARED = 32
"""Tokens from which sharing pays: copying a sequence costs about as much as prefilling some twenty tokens."""


class KVCache:
    """Places for answers. A sequence keeps its tokens after its answer has left, for whoever begins alike.

    llama.cpp decodes neighbours in one micro-batch, and only neighbours, so taken sequences are kept side by side.
    """

    def __init__(self, context: object, sequences: int) -> None:
        self._memory = llama_cpp.llama_get_memory(context)
        self.held: list[list[int]] = [[] for _ in range(sequences)]
        """Tokens in each sequence; who decodes appends to them."""
        self._free = list(range(sequences))
        """Least recently used first."""

    @property
    def has_room(self) -> bool:
        return bool(self._free)

    @property
    def taken(self) -> list[int]:
        return [sequence for sequence in range(len(self.held)) if sequence not in self._free]

    def shared(self, prompt: Sequence[int]) -> int:
        """How many of `prompt`'s first tokens some sequence holds; the last one is always decoded anew."""
        return self._best(prompt)[1]

    def take(self, prompt: Sequence[int], *, share: bool) -> tuple[int, int]:
        """A sequence for `prompt`, and how many of its tokens are in it already; none if not `share`."""
        source, n_shared = self._best(prompt) if share else (-1, 0)
        sequence = self._choose(source if n_shared >= MIN_SHARED else -1)
        self._free.remove(sequence)
        n_own = self._beginning(sequence, prompt) if share else 0
        if n_shared - n_own < MIN_SHARED:
            return sequence, self._trim(sequence, n_own)
        self._copy(source, sequence)
        return sequence, self._trim(sequence, n_shared)

    def cut(self, sequence: int, length: int) -> None:
        """Take back the tokens after the first `length`."""
        self._trim(sequence, length)

    def leave(self, sequence: int, *, clear: bool = False) -> None:
        """Give a sequence back; `clear` where what it holds cannot be trusted."""
        self._free.append(sequence)
        if clear:
            self._trim(sequence, 0)

    def close_gap(self) -> tuple[int, int] | None:
        """Move the last taken sequence into a gap between the others, if there is one: (from, to)."""
        taken = self.taken
        gap = next((s for s in range(taken[0], taken[-1]) if s in self._free), None) if taken else None
        if gap is None:
            return None
        last = taken[-1]
        self._free.remove(gap)
        self._copy(last, gap)
        self._free.append(last)
        return last, gap

    def _best(self, prompt: Sequence[int]) -> tuple[int, int]:
        lengths = [self._beginning(sequence, prompt) for sequence in range(len(self.held))]
        return lengths.index(max(lengths)), max(lengths)

    def _beginning(self, sequence: int, prompt: Sequence[int]) -> int:
        return min(common_prefix(self.held[sequence], prompt), len(prompt) - 1)

    def _choose(self, source: int) -> int:
        """With company, the nearest free sequence to it; alone, the one with the prefix, or the longest unused."""
        taken = self.taken
        if taken:
            return min(self._free, key=lambda s: max(taken[0] - s, s - taken[-1]))
        return source if source in self._free else self._free[0]

    def _copy(self, source: int, target: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, target, -1, -1)
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)  # between sequences only whole ones
        self.held[target] = list(self.held[source])

    def _trim(self, sequence: int, length: int) -> int:
        """Keep the first `length` tokens, or none where the architecture cannot keep a part (recurrent models)."""
        if not (length and llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)):
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            length = 0
        del self.held[sequence][length:]
        return length


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many first tokens two prompts have in common."""
    for at, (mine, yours) in enumerate(zip(left, right, strict=False)):
        if mine != yours:
            return at
    return min(len(left), len(right))
