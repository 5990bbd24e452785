"""Where the model host of this machine answers, and the token that lets one in."""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from llm_core.atomic_write import write_whole
from llm_core.errors import ConfigError

TOKEN_VARIABLE = "GGUF_FLOW_HOST_TOKEN"


@dataclass(frozen=True)
class HostAddress:
    """What a host posts when it is ready."""

    url: str
    pid: int


def post_address(cache_dir: Path, address: HostAddress) -> None:
    """Let the other processes of this user on this machine find the host."""
    write_whole(_address_file(cache_dir), json.dumps(asdict(address)))


def take_down_address(cache_dir: Path) -> None:
    _address_file(cache_dir).unlink(missing_ok=True)


def read_address(cache_dir: Path) -> HostAddress | None:
    """The running host, or `None`; one whose process has died is none."""
    try:
        address = HostAddress(**json.loads(_address_file(cache_dir).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    try:
        has_died = psutil.Process(address.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        has_died = True
    return None if has_died else address


def host_token(cache_dir: Path) -> str:
    """The bearer token: GGUF_FLOW_HOST_TOKEN, or the one in a file of mode 600, made on first use.

    Raises:
        ConfigError: others may read the file.
    """
    if token := os.environ.get(TOKEN_VARIABLE):
        return token
    path = cache_dir / "host-token"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} may be read by others; `chmod 600` it, or delete it for a new token") from None
    return path.read_text().strip()


def _address_file(cache_dir: Path) -> Path:
    return cache_dir / "host.json"
