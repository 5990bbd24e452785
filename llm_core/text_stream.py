"""Token bytes to text: UTF-8 that is split between tokens, stop strings, reasoning blocks."""

import codecs
import re
from collections.abc import Sequence

_REASONING = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)


class TextStream:
    """Collects the bytes of tokens; gives out text that can no longer turn into a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.text = ""
        """Everything so far, a stop string and what follows it cut off."""
        self.stopped = False
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._given = 0

    def push(self, piece: bytes, *, last: bool = False) -> str:
        """Add the bytes of a token; returns the new text that is safe to show."""
        if self.stopped:
            return ""
        searched_from = max(0, len(self.text) - max(map(len, self._stop), default=0))
        self.text += self._decoder.decode(piece, final=last)
        hits = [at for at in (self.text.find(stop, searched_from) for stop in self._stop) if at >= 0]
        if hits:
            self.text, self.stopped = self.text[: min(hits)], True
        safe = len(self.text) if last or self.stopped else len(self.text) - self._held_back()
        new, self._given = self.text[self._given : safe], max(self._given, safe)
        return new

    def complete(self, text: str) -> str:
        """Take `text`, which begins with all that was given out, for the whole; returns what is new of it."""
        self._decoder.reset()
        new, self.text, self._given = text[self._given :], text, len(text)
        return new

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        return max(
            (n for stop in self._stop for n in range(1, len(stop)) if self.text.endswith(stop[:n])),
            default=0,
        )


def split_reasoning(text: str) -> tuple[str, str | None]:
    """(answer, reasoning): `<think>…</think>` blocks taken out of `text`.

    A block that is still open at the end counts to the end; where the chat template opened the block inside the prompt,
    all text before the lone `</think>` is reasoning.
    """
    opened = text.find("<think>")
    closed = text.find("</think>")
    if closed >= 0 and (opened < 0 or closed < opened):
        text = "<think>" + text
    blocks = _REASONING.findall(text)
    answer = _REASONING.sub("", text).strip()
    return answer, "\n".join(block.strip() for block in blocks) or None
