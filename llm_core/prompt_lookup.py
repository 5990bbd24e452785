"""Prompt lookup decoding: an answer often repeats its prompt or itself, so its next tokens are guessed from there.

A model checks a guess of several tokens in one decode, which costs less than a decode for each (Saxena 2023,
github.com/apoorvumang/prompt-lookup-decoding). llama-cpp-python's `LlamaPromptLookupDecoding` falls back to the match
of a single token, whose guesses are mostly wrong, takes the first match, not the last, and learns nothing from it.
"""

from collections.abc import Sequence

from llm_core.prompt_pieces import NO_TOKEN

MATCH = 6
"""Tokens that must have stood together before. Of 2 to 10 tried on 128 answers of SmolLM2-135M (stories, drafts,
critiques, revisions, syntheses) fewer lose time where little is repeated, and more find less."""
FIRST_DRAFT, MAX_DRAFT = 3, 15
"""Tokens guessed at once. A draft that comes true makes the next one longer."""


class PromptLookup:
    """What came after the same `MATCH` tokens before, of one answer: a function of its own tokens alone."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens = list(prompt)
        self._n_prompt = len(prompt)
        self._followed_at: dict[tuple[int, ...], int] = {}
        """Where the token stands that came after these, the last time."""
        self._n_seen = MATCH
        self._length = FIRST_DRAFT

    def draft(self, completion: Sequence[int], room: int) -> list[int]:
        """Guess what follows `completion`, `room` tokens at most; nothing where nothing like it stood before."""
        tokens = self._tokens
        tokens += completion[len(tokens) - self._n_prompt :]
        for end in range(self._n_seen, len(tokens)):
            self._followed_at[tuple(tokens[end - MATCH : end])] = end
        self._n_seen = max(self._n_seen, len(tokens))
        at = self._followed_at.get(tuple(tokens[-MATCH:]))
        if at is None:
            return []
        found = tokens[at : at + min(room, self._length)]
        return found[: found.index(NO_TOKEN)] if NO_TOKEN in found else found

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Guess further after a draft that came true, and no further than the last one was right."""
        further = min(MAX_DRAFT, 2 * self._length + 1)  # 4, 8, 16 tokens a decode, which llama.cpp's kernels take best
        self._length = further if n_accepted == n_drafted else max(1, n_accepted)
