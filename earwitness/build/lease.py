"""One process at a time works on a build from the command line."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwitness.errors import BuildBusyError, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.build.layout import Build

RENEW_S = 10.0
STALE_S = 60.0
"""A lease not renewed for this long belongs to a process that is gone."""

_PATH = "lease.json"


@contextmanager
def lease(build: Build) -> Iterator[None]:
    """Hold a build for as long as the block runs.

    The lease only saves work that would be done twice: every write of a build is idempotent, so
    that even two holders could not harm it.

    Raises:
        BuildBusyError: Another living process holds the build.
    """
    holder = lease_holder(build)
    if holder is not None:
        raise BuildBusyError(
            f"{build.id} is being built by process {holder['pid']} on {holder['host']}; "
            "wait for it, or start another build with --new"
        )
    mine = {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _process_start(os.getpid()),
    }
    _renew(build, mine)
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(build, mine, stop), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        held = _read(build)
        if held is not None and held["token"] == mine["token"]:
            build.store.delete([_PATH])


def lease_holder(build: Build) -> dict[str, Any] | None:
    """The living process that holds a build: its `host`, `pid` and more; None: nobody."""
    holder = _read(build)
    return holder if holder is not None and _alive(holder) else None


def _keep(build: Build, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        try:
            _renew(build, mine)
        except TransientError:
            continue  # the next renewal is soon enough


def _renew(build: Build, mine: dict[str, Any]) -> None:
    build.store.write_bytes(_PATH, json.dumps({**mine, "renewed": time.time()}).encode())


def _read(build: Build) -> dict[str, Any] | None:
    try:
        held: dict[str, Any] = json.loads(build.store.read_bytes(_PATH))
    except (FileNotFoundError, ValueError):
        return None
    return held


def _alive(holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname():
        return bool(_process_start(holder["pid"]) == holder["started"])
    return bool(time.time() - holder["renewed"] < STALE_S)


def _process_start(pid: int) -> str:
    """A process's start time in clock ticks since boot; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # the command in brackets may itself contain spaces; start time is field 22 (proc(5))
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
