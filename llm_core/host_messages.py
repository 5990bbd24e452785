"""What goes over HTTP between a run and the model host: a generation's request and its events, as JSON."""

from dataclasses import asdict
from typing import Any

from llm_core import errors
from llm_core.call_params import LoadParams, SamplingParams
from llm_core.errors import GgufFlowError
from llm_core.generation import GenerateRequest, GenerateResult


def pack_request(load: LoadParams, model: str, request: GenerateRequest) -> dict[str, Any]:
    return {"load": asdict(load), "model": model, "request": asdict(request)}


def unpack_request(data: dict[str, Any]) -> tuple[LoadParams, str, GenerateRequest]:
    """The inverse of `pack_request`, after a journey as JSON."""
    request = dict(data["request"])
    sampling = dict(request["sampling"])
    sampling["stop"] = tuple(sampling["stop"])
    sampling["logit_bias"] = tuple((text, bias) for text, bias in sampling["logit_bias"])
    request["sampling"] = SamplingParams(**sampling)
    request["messages"] = tuple((role, content) for role, content in request["messages"])
    return LoadParams(**data["load"]), data["model"], GenerateRequest(**request)


def pack_error(error: GgufFlowError) -> dict[str, Any]:
    return {"error": str(error), "kind": type(error).__name__}


def unpack_error(data: dict[str, Any]) -> GgufFlowError:
    error_class = getattr(errors, data["kind"], GgufFlowError)
    error: GgufFlowError = error_class(data["error"])
    return error


def unpack_result(data: dict[str, Any]) -> GenerateResult:
    return GenerateResult(**{**data, "degraded": tuple(data["degraded"])})
