"""What one model needs in memory, in bytes."""

from dataclasses import dataclass

from llm_core.gguf_file import GgufFile
from llm_core.parameters import LoadParams

F16_BYTES = 2


@dataclass(frozen=True)
class ModelNeed:
    weights_bytes: int
    kv_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes


def estimate_memory(gguf: GgufFile, load: LoadParams) -> ModelNeed:
    """A first estimate from the header: tensor bytes plus an f16 KV cache; compute buffers are not in it.

    KV: per layer and token one key and one value vector for each KV head (llama.cpp, src/llama-kv-cache.cpp).
    """
    heads = gguf.of_architecture("attention.head_count") or 1
    kv_heads = gguf.of_architecture("attention.head_count_kv") or heads
    n_layers = gguf.n_layers or 0
    heads_of_all_layers = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * n_layers
    n_heads = max(heads) if isinstance(heads, list) else heads
    default = (gguf.of_architecture("embedding_length") or 0) // max(1, n_heads)
    key = gguf.of_architecture("attention.key_length") or default
    value = gguf.of_architecture("attention.value_length") or default
    per_token = heads_of_all_layers * (key + value) * F16_BYTES
    return ModelNeed(gguf.tensor_bytes, per_token * load.n_ctx * load.sequences)
