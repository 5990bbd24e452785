"""What the pools of this machine hold, where another process can read it: one file per pool, gone with its process."""

import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from llm_core.atomic_write import write_whole
from llm_core.resident import ResidentStatus


class StatusBoard:
    """Where one pool posts what is resident."""

    def __init__(self, cache_dir: Path) -> None:
        self._path = _folder(cache_dir) / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.json"

    def post(self, residents: list[ResidentStatus]) -> None:
        """Replace what was posted; nothing resident takes the file away."""
        with suppress(OSError):  # status is a service, never a reason to fail
            if not residents:
                self._path.unlink(missing_ok=True)
                return
            rows = [_row(resident) for resident in residents]
            write_whole(self._path, json.dumps({"pid": os.getpid(), "posted": time.time(), "residents": rows}))


def read_board(cache_dir: Path) -> list[dict[str, Any]]:
    """Every resident model of every pool whose process lives, with its `pid`."""
    rows = []
    for path in sorted(_folder(cache_dir).glob("*.json")):
        with suppress(OSError, ValueError, KeyError):
            data = json.loads(path.read_text())
            if psutil.pid_exists(data["pid"]):
                rows += [{"pid": data["pid"], "posted": data["posted"], **row} for row in data["residents"]]
            else:
                path.unlink(missing_ok=True)  # its process was killed
    return rows


def _row(resident: ResidentStatus) -> dict[str, Any]:
    return {
        "model": resident.model,
        "file": Path(resident.load.path).name,
        "n_ctx": resident.load.n_ctx,
        "state": resident.state,
        "bytes": dict(resident.bytes),
        "users": resident.users,
        "pinned": resident.pinned,
        "last_used": None if resident.idle_s is None else time.time() - resident.idle_s,
    }


def _folder(cache_dir: Path) -> Path:
    return cache_dir / "pools"
