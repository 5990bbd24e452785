"""What goes wrong on the way to a remote model, as one line, and whether trying again may help."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from llm_core.errors import (
    ConfigError,
    ContextOverflow,
    GgufFlowError,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from llm_core.providers.protocol import FindKey

LONGEST_WAIT_S = 300.0
"""A provider that asks for more patience has failed; so long a wait would hold up the run."""
SILENT = "no connection, or no sign of life"
_LONGEST_BACKOFF_S = 30.0
_OF_THE_REQUEST = (400, 413, 422)
"""Bad request, content too large, unprocessable."""
_OVERFLOWS = ("context_length_exceeded", "exceed_context_size_error", "prompt is too long", "maximum context length")


def required_key(name: str, provider: str, find_key: FindKey) -> str:
    """The key in a variable.

    Raises:
        ConfigError: it is not set.
    """
    key = find_key(name)
    if not key:
        raise ConfigError(
            f"provider '{provider}' needs a key: set {name}, or make a Secret block '{block_name(name)}' in Prefect"
        )
    return key


def block_name(variable: str) -> str:
    """Of the Secret block that stands for an environment variable: Prefect allows lowercase letters and dashes."""
    return variable.lower().replace("_", "-")


class Faults:
    """Makes errors of one provider's failures.

    Args:
        provider: who, for messages.
        secrets: never to be seen in a message; servers like to repeat a wrong key.
    """

    def __init__(self, provider: str, *secrets: str | None) -> None:
        self._provider, self._secrets = provider, [secret for secret in secrets if secret]

    def of_status(self, status: int, message: str, headers: Mapping[str, str]) -> GgufFlowError:
        """A response that is an error: 429 and 5xx may be better the next time; so may one that began well."""
        if status < 400:
            return self.passing(f"an error in the middle of the answer: {message}")
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
        said = f"{status} {phrase}".strip() + (f": {message}" if message else "")
        if any(sign in message for sign in _OVERFLOWS) and status < 500:
            return ContextOverflow(self.one_line(said))
        if status in _OF_THE_REQUEST:
            return self.refused(said)
        if status != HTTPStatus.TOO_MANY_REQUESTS and status < 500:
            return ProviderError(self.one_line(said))
        asked_s = retry_after_s(headers)
        if asked_s is not None and asked_s > LONGEST_WAIT_S:
            return ProviderError(self.one_line(f"{said} (it asks to be left alone for {asked_s:.0f} s)"))
        return self.passing(said, asked_s)

    def passing(self, message: str, retry_after_s: float | None = None) -> ProviderUnavailable:
        """A fault that may not be there the next time."""
        said = self.one_line(message)
        error = ProviderUnavailable(said)
        error.retry_after_s = retry_after_s
        return error

    @contextmanager
    def of_sdk(self, sdk: Any, message: Callable[[Any], str]) -> Iterator[None]:
        """Within it, what `openai` or `anthropic` raises is one of ours; both are made by one generator, with errors of
        the same names.

        Args:
            message: what the server said, of an `APIStatusError`.
        """
        try:
            yield
        except sdk.APITimeoutError:
            raise self.passing(SILENT) from None
        except sdk.APIStatusError as error:
            raise self.of_status(error.status_code, message(error), error.response.headers) from None
        except sdk.APIConnectionError as error:
            raise self.passing(f"the connection failed: {error.__cause__ or error}") from None
        except sdk.APIError as error:
            raise self.passing(f"an error in the middle of the answer: {error.message}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.passing(f"what it streams is no JSON: {error}") from None

    def refused(self, message: str) -> RequestRefused:
        """One that will be, for this request."""
        return RequestRefused(self.one_line(message))

    def one_line(self, message: str) -> str:
        for secret in self._secrets:
            message = message.replace(secret, "…")
        line = " ".join(message.split())
        return f"{self._provider}: {line[:400]}"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3); `None` where it says nothing."""
    written = headers.get("retry-after")
    if not written:
        return None
    try:
        wait_s = float(written)
    except ValueError:
        try:
            wait_s = (parsedate_to_datetime(written) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, wait_s) if wait_s == wait_s else None


def wait_s(error: GgufFlowError, attempt: int) -> float:
    """How long to wait before a retry, after the `attempt`-th failure, from 1.

    As the provider asks; else 1, 2, 4, … s, and up to half more so that those who failed together do not come back
    together. A model's process that has died can be started again at once.
    """
    if not isinstance(error, ProviderUnavailable):
        return 0.0
    if error.retry_after_s is not None:
        return error.retry_after_s
    return min(2.0 ** (attempt - 1), _LONGEST_BACKOFF_S) * random.uniform(1.0, 1.5)
