"""Failed allocations are recognised by what llama.cpp says of them; the lines are from its sources."""

import subprocess
import sys

import pytest

from llm_core.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "line",
    [
        "cuda_buffer_type_alloc_buffer: allocating 94.00 MiB on device 0: cudaMalloc failed: out of memory",
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 98566144",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
        "graph_reserve: failed to allocate compute buffers",
        "CUDA error: out of memory",
        "ggml_aligned_malloc: insufficient memory (attempted to allocate 659182.50 MB)",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "MemoryError",
        "cuBLAS error: the resource allocation failed",
    ],
)
def test_words_of_a_failed_allocation(line: str) -> None:
    assert is_out_of_memory(line)


@pytest.mark.parametrize(
    "line",
    [
        "GGML_ASSERT(n_tokens <= n_batch) failed",
        "tensor 'token_embd.weight' data is not within the file bounds, model is corrupted or incomplete",
        "CUDA error: an illegal memory access was encountered",
        "",
    ],
)
def test_other_failures_are_not_taken_for_one(line: str) -> None:
    assert not is_out_of_memory(line)


def test_error_that_llama_cpp_logs_before_it_aborts_outlives_the_process() -> None:
    """As ggml's CUDA code does: log the error, then abort; the log's callback is ours."""
    script = (
        "import ctypes, llama_cpp\n"
        "from llm_core.llama_model import keep_errors\n"
        "llama_cpp.llama_log_set(keep_errors, ctypes.c_void_p(0))\n"
        "base = llama_cpp.llama_cpp._lib\n"
        "base.ggml_log_internal(4, b'CUDA error: out of memory\\n')\n"
        "base.ggml_abort(b'ggml-cuda.cu', 104, b'CUDA error')\n"
    )
    environment = {"GGML_NO_BACKTRACE": "1"}
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert process.returncode < 0
    assert is_out_of_memory(process.stderr), process.stderr
