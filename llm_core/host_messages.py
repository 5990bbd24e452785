"""What goes over HTTP between a run and the model host: a generation's request and its events, as JSON."""

from dataclasses import asdict
from typing import Any

from llm_core import errors
from llm_core.call_params import LoadParams
from llm_core.errors import GgufFlowError
from llm_core.generation import GenerateRequest, pack_request, unpack_request


def pack_call(load: LoadParams, model: str, request: GenerateRequest) -> dict[str, Any]:
    return {"load": asdict(load), "model": model, "request": pack_request(request)}


def unpack_call(data: dict[str, Any]) -> tuple[LoadParams, str, GenerateRequest]:
    """The inverse of `pack_call`, after a journey as JSON."""
    return LoadParams(**data["load"]), data["model"], unpack_request(data["request"])


def pack_error(error: GgufFlowError) -> dict[str, Any]:
    return {"error": str(error), "kind": type(error).__name__}


def unpack_error(data: dict[str, Any]) -> GgufFlowError:
    error_class = getattr(errors, data["kind"], GgufFlowError)
    error: GgufFlowError = error_class(data["error"])
    return error
