"""The real models that benchmarks and tests run on, made from the small one by quantizing it again."""

import ctypes
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent.parent
SMOLLM = REPOSITORY / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
_FTYPES = {"Q8_0": 7, "Q5_0": 8, "Q4_0": 2}  # llama_ftype of llama.h


def _silence() -> object:
    """llama.cpp prints a line per tensor otherwise. Kept for the process's life: it is called from C."""
    global _quiet
    import llama_cpp

    _quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    return _quiet


def make_variants(folder: Path, names: tuple[str, ...] = ("Q8_0", "Q5_0", "Q4_0")) -> dict[str, Path]:
    """Distinct GGUF files by quantization, the original `Q4_1` among them."""
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), ctypes.c_void_p(0))
    made = {"Q4_1": SMOLLM}
    for name in names:
        made[name] = folder / f"SmolLM2-135M-Instruct.{name}.gguf"
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = _FTYPES[name], 2, True
        paths = str(SMOLLM).encode(), str(made[name]).encode()
        if llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) != 0:
            raise RuntimeError(f"{SMOLLM} cannot be quantized to {name}")
    return made
