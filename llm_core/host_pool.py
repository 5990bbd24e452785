"""The pool of a run that uses the model host: same methods as `ModelPool`, over HTTP."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from llm_core.call_params import LoadParams
from llm_core.errors import ConfigError, ModelCrashed
from llm_core.generation import GenerateRequest, GenerateResult, unpack_result
from llm_core.host_address import TOKEN_VARIABLE, host_token, read_address
from llm_core.host_messages import pack_call, unpack_error
from llm_core.machine import Bytes
from llm_core.resident import ResidentStatus
from llm_core.worker import OnToken

RETURN_S = 20.0
"""How long a host that has gone may take to come back, before a step fails."""


class HostPool:
    """Asks the host of this machine; may be used from any thread.

    Args:
        cache_dir: where the host posts its address and its token lies.
        url: where it is, if not there.

    Raises:
        ConfigError: the host does not know the token.
        ModelCrashed: by any method, where the host dies or does not answer; a retry may succeed.
    """

    def __init__(self, cache_dir: Path, url: str | None = None) -> None:
        self._cache_dir, self._fixed_url, self._run = cache_dir, url, uuid.uuid4().hex
        headers = {"Authorization": f"Bearer {host_token(cache_dir)}"}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=5), limits=limits)
        state = self._state()
        self.budget: Bytes = state["budget"]
        self._loads_before: int = state["load_count"]

    @property
    def load_count(self) -> int:
        """Models the host has loaded since this run began, for this run or for others."""
        return int(self._state()["load_count"]) - self._loads_before

    def generate(
        self, load: LoadParams, model: str, request: GenerateRequest, on_token: OnToken | None = None
    ) -> GenerateResult:
        """As `ModelPool.generate`."""
        try:
            with self._post("/pool/generate", {"run": self._run, **pack_call(load, model, request)}) as response:
                for line in response.iter_lines():
                    event = json.loads(line)
                    if "error" in event:
                        raise unpack_error(event)
                    if "result" in event:
                        return unpack_result(event["result"])
                    if on_token:
                        on_token(event["text"], event["n"])
        except httpx.HTTPError as error:
            raise ModelCrashed(f"model '{model}': the model host died while generating ({error})") from None
        raise ModelCrashed(f"model '{model}': the model host died while generating")

    @contextmanager
    def hold(self, load: LoadParams) -> Iterator[None]:
        """As `ModelPool.hold`; lasts as long as the connection."""
        with self._post("/pool/hold", {"load": asdict(load)}) as response:
            lines = response.iter_lines()  # to drop it would close the connection
            next(lines)
            yield

    def prefetch(self, load: LoadParams, model: str) -> None:
        """As `ModelPool.prefetch`."""
        with self._post("/pool/prefetch", {"load": asdict(load), "model": model}):
            pass

    def expect(self, loads: Iterable[LoadParams]) -> None:
        """Nothing: the host serves several runs, so it evicts by last use alone."""

    def free_now(self) -> Bytes:
        """As `ModelPool.free_now`."""
        free: Bytes = self._state()["free"]
        return free

    def status(self) -> list[ResidentStatus]:
        """As `ModelPool.status`."""
        return [
            ResidentStatus(**{**resident, "load": LoadParams(**resident["load"])})
            for resident in self._state()["models"]
        ]

    def close(self) -> None:
        """End what this run has under way, and leave; the models stay with the host."""
        if address := self._fixed_url or getattr(read_address(self._cache_dir), "url", None):
            with suppress(httpx.HTTPError):
                self._client.post(f"{address}/pool/end", json={"run": self._run}, timeout=5)
        self._client.close()

    def _state(self) -> dict[str, Any]:
        url = self._url()
        try:
            response = self._client.get(f"{url}/models/status")
            if response.status_code == 401:
                raise ConfigError(f"the model host at {url} refuses the token; set {TOKEN_VARIABLE} to the one it has")
            response.raise_for_status()
        except httpx.HTTPError as error:
            remedy = "start it with `gguf-flow serve`, or correct GGUF_FLOW_HOST_URL"
            raise ModelCrashed(f"the model host at {url} does not answer ({error}); {remedy}") from None
        state: dict[str, Any] = response.json()
        return state

    @contextmanager
    def _post(self, path: str, body: dict[str, Any]) -> Iterator[httpx.Response]:
        with self._client.stream("POST", f"{self._url()}{path}", json=body) as response:
            if response.is_error:
                raise ModelCrashed(f"the model host refuses {path}: {response.status_code} {response.read().decode()}")
            yield response

    def _url(self) -> str:
        """Of the host now; one that has just died is given time to come back."""
        if self._fixed_url:
            return self._fixed_url
        deadline = time.monotonic() + RETURN_S
        while True:
            if address := read_address(self._cache_dir):
                return address.url
            if time.monotonic() > deadline:
                raise ModelCrashed("the model host has gone; start it again with `gguf-flow serve`")
            time.sleep(0.2)
