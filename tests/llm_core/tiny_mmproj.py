"""A projector of a megabyte with fixed random weights: what is seen through it means nothing, but is really seen."""

from pathlib import Path
from typing import Literal

import gguf
import numpy as np

EMBEDDING = 576
"""Of SmolLM2-135M."""
IMAGE_TOKENS = {"mlp": 16, "gemma3": 4}
"""Of 32 × 32 pixels in patches of 8 × 8; gemma3 makes one token of 2 × 2 patches."""
_WIDTH, _PATCH, _SIDE = 32, 8, 32


def write_tiny_mmproj(
    path: Path, projector: Literal["mlp", "gemma3"] = "mlp", *, embedding: int = EMBEDDING, vision: bool = True
) -> Path:
    """Write a projector of two layers. Keys and tensors: llama.cpp, tools/mtmd/clip-impl.h.

    Args:
        projector: `mlp`, LLaVA's, whose image tokens see those before them; `gemma3`, whose see each other.
        embedding: of the model that it belongs to.
    """
    random = np.random.default_rng(7)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", vision)
    writer.add_string("clip.projector_type", projector)
    writer.add_bool("clip.use_gelu", True)
    numbers = {"image_size": _SIDE, "patch_size": _PATCH, "embedding_length": _WIDTH, "feed_forward_length": 64}
    numbers |= {"block_count": 2, "attention.head_count": 2, "projection_dim": embedding, "projector.scale_factor": 2}
    for key, number in numbers.items():
        writer.add_uint32(f"clip.vision.{key}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])

    def add(name: str, *shape: int, mean: float = 0.0, deviation: float = 0.2) -> None:
        writer.add_tensor(name, random.normal(mean, deviation, shape).astype(np.float32))

    add("v.patch_embd.weight", _WIDTH, 3, _PATCH, _PATCH)
    add("v.position_embd.weight", (_SIDE // _PATCH) ** 2, _WIDTH)
    for layer in range(2):
        for norm in ("ln1", "ln2"):
            add(f"v.blk.{layer}.{norm}.weight", _WIDTH, mean=1.0)
            add(f"v.blk.{layer}.{norm}.bias", _WIDTH)
        for matrix in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"v.blk.{layer}.{matrix}.weight", _WIDTH, _WIDTH)
        add(f"v.blk.{layer}.ffn_up.weight", 64, _WIDTH)
        add(f"v.blk.{layer}.ffn_down.weight", _WIDTH, 64)
    if projector == "mlp":
        add("mm.0.weight", embedding, _WIDTH)
        add("mm.0.bias", embedding)
        add("mm.2.weight", embedding, embedding, deviation=0.02)
        add("mm.2.bias", embedding)
    else:
        add("mm.input_projection.weight", _WIDTH, embedding)
        add("mm.soft_emb_norm.weight", _WIDTH, mean=1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
