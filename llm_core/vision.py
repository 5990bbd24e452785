"""A model's eyes: llama.cpp's projector (mtmd) makes image tokens of an image, and decodes them into a sequence."""

import ctypes
import secrets
import weakref
from collections.abc import Sequence

import llama_cpp
import llama_cpp.mtmd_cpp as mtmd

from llm_core.call_params import LoadParams
from llm_core.errors import ContextOverflow, InputError, ModelLoadError
from llm_core.images import Image
from llm_core.llama_model import (
    BATCH_TOKENS,
    FLASH_ATTENTION,
    LlamaModel,
    first_error,
    forget_errors,
    keep_errors,
    load_error,
)
from llm_core.machine import physical_cores
from llm_core.prompt_pieces import NO_TOKEN, ImagePiece, Prompt

MARKER = "<__media__>"
"""Stands for an image in a prompt that people read; it is mtmd's own."""
_NOWHERE = b"/dev/null"


class Vision:
    """The projector beside a loaded model.

    Raises:
        ModelLoadError: llama.cpp refuses the file, or it belongs to another model; with what it said.
    """

    def __init__(self, load: LoadParams, llama: LlamaModel) -> None:
        mtmd.mtmd_helper_log_set(keep_errors, ctypes.c_void_p(0))
        self._load, self._llama, self._threads, self._context = load, llama, physical_cores(), None
        self._open()

    def _open(self) -> None:
        params = projector_params(self._load)
        params.n_threads = self._threads
        assert self._load.mmproj
        forget_errors()
        self._context = mtmd.mtmd_init_from_file(self._load.mmproj.encode(), self._llama.model, params)
        if not self._context:
            raise load_error(f"llama.cpp cannot load the mmproj {self._load.mmproj}: {first_error()}")
        if not mtmd.mtmd_support_vision(self._context):
            raise ModelLoadError(f"the mmproj {self._load.mmproj} has no vision encoder")

    def use_threads(self, threads: int) -> None:
        """mtmd takes the number once, when it is made, so that it is made anew for another one."""
        if threads != self._threads:
            mtmd.mtmd_free(self._context)
            self._threads = threads
            self._open()

    def prompt(self, messages: Sequence[tuple[str, str]], images: Sequence[Image]) -> Prompt:
        """The prompt with `images` before the text of the user's last message.

        Raises:
            InputError: an image cannot be decoded.
            ContextOverflow: an image has more tokens than can be decoded in one piece.
            ModelLoadError: the chat template leaves them out.
        """
        texts = _rendered(self._llama, messages, len(images))
        chunks = self._chunks(texts, images)
        tokens: list[int] = []
        pieces: list[ImagePiece] = []
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            n_tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                if n_tokens:
                    tokens += mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(ctypes.c_size_t()))[:n_tokens]
                continue
            if n_tokens > BATCH_TOKENS and mtmd.mtmd_decode_use_non_causal(self._context, chunk):
                raise ContextOverflow(
                    f"an image has {n_tokens} tokens, which this model must be given at once; "
                    f"at most {BATCH_TOKENS} can be: make it smaller"
                )
            positions = mtmd.mtmd_input_chunk_get_n_pos(chunk)
            pieces.append(ImagePiece(len(tokens), n_tokens, positions, chunk))
            tokens += [NO_TOKEN] * n_tokens
        prompt = Prompt(MARKER.join(texts), tokens, pieces)
        weakref.finalize(prompt, mtmd.mtmd_input_chunks_free, chunks)
        return prompt

    def decode(self, piece: ImagePiece, position: int, sequence: int) -> int:
        """Encode an image and put it into `sequence` of the context; other than 0 is llama.cpp's error."""
        end = llama_cpp.llama_pos(0)
        status: int = mtmd.mtmd_helper_eval_chunk_single(
            self._context, self._llama.context, piece.chunk, position, sequence, BATCH_TOKENS, False, ctypes.byref(end)
        )
        return status

    def _chunks(self, texts: Sequence[str], images: Sequence[Image]) -> object:
        """Text, image, text, …: by parts, not by markers in a text, so that nothing in it is taken for an image."""
        bitmaps: list[object] = []
        try:
            for image in images:
                bitmaps.append(self._bitmap(image))
            parts = [_text_part(texts[0])]
            for bitmap, text in zip(bitmaps, texts[1:], strict=True):
                parts += [mtmd.mtmd_input_part(bitmap=bitmap), _text_part(text)]
            array = (ctypes.POINTER(mtmd.mtmd_input_part) * len(parts))(*map(ctypes.pointer, parts))
            chunks = mtmd.mtmd_input_chunks_init()
            status = mtmd.mtmd_tokenize_from_parts(self._context, chunks, array, len(parts), False)
        finally:
            for bitmap in bitmaps:
                mtmd.mtmd_bitmap_free(bitmap)
        if status != 0:
            mtmd.mtmd_input_chunks_free(chunks)
            said = self._llama.last_error()
            raise InputError(f"images {', '.join(image.source for image in images)}: cannot be seen: {said}")
        return chunks

    def _bitmap(self, image: Image) -> object:
        options = mtmd.mtmd_helper_init_opt_default()
        if image.media_type != "image/webp":  # what is damaged is not to be tried as a video, with ffmpeg
            options.video_params.ffmpeg_bin_dir = _NOWHERE
        data = (ctypes.c_uint8 * len(image.data)).from_buffer_copy(image.data)
        made = mtmd.mtmd_helper_bitmap_init_from_buf_wrapper(self._context, data, len(data), False, options)
        if made.bitmap:
            return made.bitmap
        kind = image.media_type.removeprefix("image/")
        if kind == "webp":
            raise InputError(
                f"image {image.source}: llama.cpp reads webp only where ffmpeg is; convert it to png or jpeg"
            )
        raise InputError(f"image {image.source}: damaged: it cannot be decoded as {kind}")


def projector_params(load: LoadParams) -> mtmd.mtmd_context_params:
    """As `load` says; the number of threads is left as it is."""
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = load.gpu is not None and load.n_gpu_layers != 0
    params.print_timings = False
    params.flash_attn_type = FLASH_ATTENTION[load.flash_attention]
    return params


def _rendered(llama: LlamaModel, messages: Sequence[tuple[str, str]], n_images: int) -> list[str]:
    """The prompt in pieces, with an image between each two; the marker is one that no text can hold."""
    marker = f"<image {secrets.token_hex(16)}>"
    last = max(index for index, (role, _) in enumerate(messages) if role == "user")
    marked = [(role, marker * n_images * (at == last) + text) for at, (role, text) in enumerate(messages)]
    texts = llama.template.render(marked).split(marker)
    if len(texts) != n_images + 1:
        raise ModelLoadError("the chat template in the file leaves images out")
    return texts


def _text_part(text: str) -> mtmd.mtmd_input_part:
    data = text.encode()
    written = mtmd.mtmd_input_text(text=data, text_len=len(data), add_special=False, parse_special=True)
    return mtmd.mtmd_input_part(text=ctypes.pointer(written))
