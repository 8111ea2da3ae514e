"""One run at a time works on a build as a whole."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwitness.errors import BuildBusyError, EarwitnessError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.builds.layout import Build

RENEW_S = 10.0
STALE_S = 60.0
"""A lease not renewed for this long belongs to a process that is gone."""

_PATH = "lease.json"


@contextmanager
def lease(build: Build, owner: str = "") -> Iterator[None]:
    """Hold a build for as long as the block runs.

    The lease only saves work that would be done twice: every write of a build is idempotent, so
    that even two holders could not harm it.

    Args:
        build: The build.
        owner: Whoever comes back under the same name (a flow run that is retried) takes the
            lease over, also from a process that cannot be seen from here.

    Raises:
        BuildBusyError: Another living process holds the build.
    """
    holder = lease_holder(build)
    if holder is not None and not (owner and holder.get("owner") == owner):
        raise BuildBusyError(
            f"{build.id} is being built by {told_holder(holder)}: "
            "wait until it ends, or start another build with --new"
        )
    mine = {
        "owner": owner,
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
        # storage that does not answer now has been told of already, and nobody renews the lease
        with suppress(EarwitnessError):
            held = _read(build)
            if held is not None and held["token"] == mine["token"]:
                build.store.delete([_PATH])


def lease_holder(build: Build) -> dict[str, Any] | None:
    """The living process that holds a build: its `host`, `pid` and more; None: nobody."""
    holder = _read(build)
    return holder if holder is not None and _alive(holder) else None


def told_holder(holder: dict[str, Any]) -> str:
    """A lease's holder in words."""
    owner = f"{holder['owner']}, " if holder.get("owner") else ""
    return f"{owner}process {holder['pid']} on {holder['host']}"


def _keep(build: Build, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        try:
            held = _read(build)
            if held is not None and held["token"] != mine["token"]:
                return  # whoever took it over has it now
            _renew(build, mine)
        except EarwitnessError:
            continue  # the next renewal is soon enough; the build itself reports faults of storage


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
    # either way: a clock that was ahead when it was written must not hold the build up until then
    return bool(abs(time.time() - holder["renewed"]) < STALE_S)


def _process_start(pid: int) -> str:
    """A process's start time in clock ticks since boot; empty when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return ""
    # the command in brackets may itself contain spaces; start time is field 22 (proc(5))
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
