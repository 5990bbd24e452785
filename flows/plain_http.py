"""Prefect's clients without certificates that nobody will ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certifi
from prefect.settings import PREFECT_API_SSL_CERT_FILE, get_current_settings, temporary_settings

from llm_core.atomic_write import write_whole

_END = "-----END CERTIFICATE-----\n"


@contextmanager
def without_certificates(cache_dir: Path) -> Iterator[None]:
    """Where the API is reached over plain HTTP, let Prefect read one certificate in place of some 150.

    Each task makes two clients, and each client reads them all: of 65 ms that a task cost (12 tasks, 2 cores), this
    was 30 to 50. Nothing changes for an API over HTTPS.
    """
    if (get_current_settings().api.url or "").startswith("https://"):
        yield
        return
    one = cache_dir / "one-certificate.pem"
    if not one.exists():
        write_whole(one, Path(certifi.where()).read_text().partition(_END)[0] + _END)
    with temporary_settings(updates={PREFECT_API_SSL_CERT_FILE: str(one)}):
        yield
