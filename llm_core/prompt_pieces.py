"""A prompt as an engine decodes it: tokens, and images between them."""

from dataclasses import dataclass, field

NO_TOKEN = -1
"""Stands for each token of an image, which has no place in the vocabulary."""


@dataclass(frozen=True)
class ImagePiece:
    """An image, or a slice of one, in a prompt."""

    at: int
    """Index of its first token."""
    n_tokens: int
    n_positions: int
    """Fewer than tokens where they lie in a plane (M-RoPE)."""
    chunk: object


@dataclass
class Prompt:
    """What a model is given."""

    text: str
    tokens: list[int]
    images: list[ImagePiece] = field(default_factory=list)
    """That are not in the KV cache yet, in order."""

    @property
    def beginning(self) -> list[int]:
        """Its tokens before the first image: so much of it can be told from another one."""
        return self.tokens[: self.tokens.index(NO_TOKEN)] if NO_TOKEN in self.tokens else self.tokens
