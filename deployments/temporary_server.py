"""The Prefect API a build runs against: the one configured, else one that lives with the build."""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from earwitness.engine.guardian import start_guarded
from earwitness.engine.server import free_port
from earwitness.errors import FatalError
from earwitness.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from earwitness.engine.guardian import Guarded

_START_TIMEOUT_S = 180.0
_ANSWER_TIMEOUT_S = 15.0
_PROBE_S = 0.1
_LOOK_S = 1.0
_MOST_RESTARTS = 5
_REQUEST_TIMEOUT_S = 5.0

_ALONE = {
    # a build needs the API, the record of its task runs, and the events behind them
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # our own lines are what people see; everything is in the API
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
}


def quiet_prefect(*, debug: bool) -> None:
    """Keep Prefect off the terminal and off the network; before Prefect is imported."""
    for name, value in _QUIET.items():
        if not (debug and "LOGGING" in name):
            os.environ.setdefault(name, value)


@contextmanager
def prefect_api(meanwhile: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Have a Prefect API for the block.

    Args:
        meanwhile: Called while the API starts.

    Yields:
        Its address. Prefect uses it for everything inside the block.

    Raises:
        FatalError: The configured one does not answer, or goes away; or ours does not start.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        get_current_settings,
        temporary_settings,
    )

    configured = get_current_settings().api.url
    if configured:
        meanwhile()
        _wait(configured, _ANSWER_TIMEOUT_S, lambda: True, _unreachable(configured))
        with _told_when_gone(configured):
            yield configured
        return
    # nobody watches heartbeats there, and each flow run would wait a second for its own to end
    own: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    # everyone on the machine can reach the loopback, and the database holds more than this build
    own[PREFECT_API_AUTH_STRING] = login = f"earwitness:{secrets.token_urlsafe(24)}"
    with (
        _own_server(login, meanwhile) as address,
        temporary_settings({PREFECT_API_URL: address, **own}),
    ):
        try:
            with _told_when_gone(address):
                yield address
        finally:
            _flush()


@contextmanager
def _told_when_gone(address: str) -> Iterator[None]:
    import httpx

    try:
        yield
    except httpx.TransportError as error:
        raise FatalError(
            f"the Prefect API at {address} stopped answering ({error}): run the same command "
            "again; finished work is kept"
        ) from error


@contextmanager
def _own_server(login: str, meanwhile: Callable[[], None]) -> Iterator[str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    with scratch_folder() as folder:
        log = folder / "server.log"
        env = {**_ALONE, "PREFECT_SERVER_API_AUTH_STRING": login}

        def start() -> Guarded:
            return start_guarded(server_command(port), log_path=log, env=env, private=True)

        server = start()
        try:
            meanwhile()
            failed = f"the Prefect server did not start within {_START_TIMEOUT_S:g} s"
            if not _wait(address, _START_TIMEOUT_S, server.alive, failed):
                lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
                why = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
                raise FatalError(f"the Prefect server did not start: {why.strip()}")
            with _kept_alive(server, start):
                yield address
        finally:
            server.stop()


@contextmanager
def _kept_alive(server: Guarded, start: Callable[[], Guarded]) -> Iterator[None]:
    """Start a server that dies again: Prefect's client tries for a minute, and its runs are kept.

    Args:
        server: It runs already, and is its owner's to stop.
        start: Starts another in its place.
    """
    ended = threading.Event()
    others: list[Guarded] = []

    def watch() -> None:
        while not ended.wait(_LOOK_S) and len(others) < _MOST_RESTARTS:
            if not (others or [server])[-1].alive():
                others.append(start())

    watcher = threading.Thread(target=watch, name="prefect-server", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        for other in others:
            other.stop()


def server_command(port: int) -> list[str]:
    """The command that runs a Prefect server for this machine alone.

    Args:
        port: Port on the loopback.
    """
    app = ["--factory", "deployments.server_app:create_app"]
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    quiet = ["--log-level", "error", "--lifespan", "on", "--timeout-graceful-shutdown", "3"]
    return [sys.executable, "-m", "uvicorn", *app, *listen, *quiet]


def _wait(address: str, timeout_s: float, alive: Callable[[], bool], failed: str) -> bool:
    """Wait until the API answers; False when `alive()` says that it never will."""
    limit = time.monotonic() + timeout_s
    while not answers(f"{address.rstrip('/')}/health"):
        if not alive():
            return False
        if time.monotonic() > limit:
            raise FatalError(failed)
        time.sleep(_PROBE_S)
    return True


def answers(url: str) -> bool:
    """True when a server answers at an address, if only to refuse.

    Args:
        url: The address.
    """
    request = urllib.request.Request(url)  # noqa: S310 - the user's own address, or ours
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_TIMEOUT_S):  # noqa: S310 - as above
            return True
    except urllib.error.HTTPError:
        return True  # it wants a key, which Prefect's client has
    except (OSError, ValueError):
        return False


def _unreachable(address: str) -> str:
    return (
        f"the Prefect API at {address} does not answer: start it, or unset PREFECT_API_URL, and "
        "the command starts its own"
    )


def _flush() -> None:
    """Send what Prefect still holds about the run, before its server goes."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)
    EventsWorker.drain_all(timeout=5)
