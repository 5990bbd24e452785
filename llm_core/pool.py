"""Who is loaded: one model at a time, kept while the next call wants the same."""

import threading
from collections.abc import Callable
from dataclasses import replace

from llm_core.errors import GgufFlowError
from llm_core.generation import GenerateRequest, GenerateResult
from llm_core.parameters import LoadParams
from llm_core.worker import ModelWorker, OnToken

StartWorker = Callable[[LoadParams, str], ModelWorker]


class ModelPool:
    """Sequential execution: load, infer, unload. Calls from several threads take turns."""

    def __init__(self, start: StartWorker = ModelWorker) -> None:
        self._start = start
        self._turn = threading.Lock()
        self._worker: ModelWorker | None = None
        self._closed = False

    def generate(
        self, load: LoadParams, model: str, request: GenerateRequest, on_token: OnToken | None = None
    ) -> GenerateResult:
        """Answer with the model loaded as `load` says; `load_s` is 0.0 where it was loaded already.

        Raises:
            ModelLoadError, ModelCrashed, ContextOverflow, GenerationTimeout: as `ModelWorker`.
        """
        with self._turn:
            worker, loaded_now = self._loaded(load, model)
            result = worker.generate(request, on_token)
            return result if loaded_now else replace(result, load_s=0.0)

    def close(self) -> None:
        """Unload and refuse further calls; a call in mid-generation ends with `ModelCrashed`."""
        self._closed = True
        worker = self._worker
        if worker:
            worker.close()

    def _loaded(self, load: LoadParams, model: str) -> tuple[ModelWorker, bool]:
        if self._closed:
            raise GgufFlowError("the run is ending; no model is loaded any more")
        if self._worker and self._worker.alive and self._worker.load == load:
            self._worker.model = model
            return self._worker, False
        if self._worker:
            self._worker.close()
            self._worker = None
        self._worker = self._start(load, model)
        return self._worker, True
