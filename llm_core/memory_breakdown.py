"""llama.cpp's own account of a context's memory, per buffer type, to the byte.

`llama_get_memory_breakdown` is exported from libllama but not part of the C API: it returns a
`std::map<ggml_backend_buffer_type_t, {size_t model, context, compute}>` (src/llama-context.h), and
`mtmd_get_memory_usage` a `std::map<ggml_backend_dev_t, size_t>` (tools/mtmd/mtmd.h). The maps are read here by
the layout that libstdc++ and its Itanium ABI fix. It runs in a throw-away child only, so a llama.cpp or a C++ library
built otherwise costs an estimate, not the application.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import llama_cpp.llama_cpp as bindings

from llm_core.call_params import LoadParams

_SYMBOL = "_Z26llama_get_memory_breakdownPK13llama_context"
_PROJECTOR_SYMBOL = "_Z21mtmd_get_memory_usagePKc19mtmd_context_params"


@dataclass(frozen=True)
class BufferUse:
    """Bytes in one kind of buffer, such as `CPU`, `CPU_REPACK`, `CUDA0`, `CUDA_Host`."""

    buffer: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int


class _Node(ctypes.Structure):
    """libstdc++'s `_Rb_tree_node`: colour, parent, left, right, then the value."""


_Node._fields_ = [
    ("color", ctypes.c_long),
    ("parent", ctypes.POINTER(_Node)),
    ("left", ctypes.POINTER(_Node)),
    ("right", ctypes.POINTER(_Node)),
    ("buffer_type", ctypes.c_void_p),
    ("model", ctypes.c_size_t),
    ("context", ctypes.c_size_t),
    ("compute", ctypes.c_size_t),
]


class _Map(ctypes.Structure):
    """libstdc++'s `std::map`: comparator, then the header node (whose parent is the root), then the count."""

    _fields_ = (
        ("compare", ctypes.c_long),
        ("color", ctypes.c_long),
        ("root", ctypes.POINTER(_Node)),
        ("left", ctypes.POINTER(_Node)),
        ("right", ctypes.POINTER(_Node)),
        ("count", ctypes.c_size_t),
    )


def memory_breakdown(context: object) -> list[BufferUse]:
    """What `context` and its model hold, or would hold after a dry run.

    Raises:
        LookupError: this build of llama.cpp does not tell, or tells something of another shape.
    """
    try:
        function = getattr(bindings._lib, _SYMBOL)
        buffer_name = bindings._lib.ggml_backend_buft_name
    except AttributeError as error:
        raise LookupError(f"libllama does not export it: {error}") from None
    function.restype, function.argtypes = _Map, [ctypes.c_void_p]
    buffer_name.restype, buffer_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    nodes = _nodes(function(context))
    return [BufferUse(buffer_name(n.buffer_type).decode(), n.model, n.context, n.compute) for n in nodes]


def projector_memory(load: LoadParams) -> dict[str, int]:
    """Bytes by device (`CPU`, `CUDA0`) of a projector: its weights, and what it computes an image of its usual size in.

    Raises:
        LookupError: as `memory_breakdown`, or the projector cannot be read.
    """
    from llama_cpp import mtmd_cpp

    from llm_core.vision import projector_params

    try:
        function = getattr(mtmd_cpp._libmtmd, _PROJECTOR_SYMBOL)
        device_name = bindings._lib.ggml_backend_dev_name
    except AttributeError as error:
        raise LookupError(f"libmtmd does not export it: {error}") from None
    function.restype, function.argtypes = _Map, [ctypes.c_char_p, mtmd_cpp.mtmd_context_params]
    device_name.restype, device_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    nodes = _nodes(function((load.mmproj or "").encode(), projector_params(load)))
    return {device_name(n.buffer_type).decode(): n.model for n in nodes}  # a node here ends with its first number


def _nodes(tree: _Map) -> list[_Node]:
    nodes = list(_in_order(tree.root))
    if not nodes or len(nodes) != tree.count:
        raise LookupError(f"a map of {tree.count} entries was read as {len(nodes)}")
    return nodes


def _in_order(node: "ctypes._Pointer[_Node]") -> Iterator[_Node]:
    if node:
        yield from _in_order(node.contents.left)
        yield node.contents
        yield from _in_order(node.contents.right)
