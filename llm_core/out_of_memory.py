"""Recognising, from what llama.cpp says, that a device had no memory left."""

import re

_SIGNS = re.compile(
    r"out of memory|insufficient memory|unable to allocate|failed to allocate|cudaMalloc failed|bad_alloc"
    r"|MemoryError|cannot allocate memory|alloc_tensor_range|resource allocation failed|ALLOC_FAILED",
    re.IGNORECASE,
)


def is_out_of_memory(text: str) -> bool:
    """Whether an error of llama.cpp, ggml, CUDA or Python speaks of a failed allocation."""
    return bool(_SIGNS.search(text))
