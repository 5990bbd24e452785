"""A sound GGUF file of some hundred bytes, for tests that only need its header."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

TENSOR_BYTES = 92
"""2 × 3 numbers of 4 bytes in F32, and 2 × 32 numbers as 2 blocks of 34 bytes in Q8_0."""
PADDING = 28
"""Behind the 68 bytes of the last tensor, up to the next multiple of 32."""


def write_tiny_gguf(path: Path, **metadata: Any) -> Path:
    """Write architecture `llama` and two tensors to `path`; in `metadata`, `__` stands for the dot of a key.

    Whole numbers become uint64, and a `llama__context_length` of 512 is there unless another one, or `None`, is given.
    """
    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT64, float: gguf.GGUFValueType.FLOAT32}
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in ({"llama__context_length": 512} | metadata).items():
        if isinstance(value, list):
            writer.add_array(key.replace("__", "."), value)
        elif value is not None:
            writer.add_key_value(key.replace("__", "."), value, kinds[type(value)])
    writer.add_tensor("plain", np.zeros((2, 3), dtype=np.float32))
    blocks = gguf.quants.quantize(np.zeros((2, 32), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
