"""Servers for system tests, one of each a session: Prefect's, a stand-in engine, an S3 endpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from workbench import RCLONE, S3Server, StandIn, WebServer, free_port, wait_for

from earwitness import storage_calls
from earwitness.audio.pool import DecodePool
from earwitness.engine.guardian import start_guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session")
def session_environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, session_environment: pytest.MonkeyPatch
) -> Iterator[str]:
    """A real Prefect server of our own; flows in this process and its children report to it."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    for name, value in environment.items():
        session_environment.setenv(name, value)
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--no-services"]
    log_path = home / "server.log"
    server = start_guarded([*command, "--port", str(port)], log_path=log_path)
    try:
        wait_for(f"{url}/health", server, log_path)
        # Prefect may have been imported, and its settings read, before this ran
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            PREFECT_HOME,
            PREFECT_LOCAL_STORAGE_PATH,
            temporary_settings,
        )

        chosen: dict[Any, Any] = {
            # its thread takes a second to end, for each flow run
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            PREFECT_API_URL: url,
            PREFECT_HOME: home,
            PREFECT_LOCAL_STORAGE_PATH: home / "storage",
        }
        with temporary_settings(chosen):
            yield url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """The engine most system tests share."""
    server = StandIn(tmp_path_factory.mktemp("stand-in") / "log")
    yield server
    server.stop()


@pytest.fixture
def start_stand_in(tmp_path: Path) -> Iterator[Callable[..., StandIn]]:
    """Starts stand-ins with flags of their own."""
    started: list[StandIn] = []

    def start(*flags: str) -> StandIn:
        started.append(StandIn(tmp_path / f"stand-in-{len(started)}.log", *flags))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def build(
    prefect_server: str,  # noqa: ARG001 - flows report to it
    stand_in: StandIn,
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the flow in this process against the session's stand-in; gives the ledger."""
    from earwitness.settings import EngineSettings
    from flows.build_dataset import build_dataset

    def run(manifest: Path | str, output: Path | str, **settings: Any) -> dict[str, Any]:
        engine = settings.pop("engine", EngineSettings(url=(stand_in.url,)))
        state = build_dataset(
            str(manifest), str(output), engine=engine, **settings, return_state=True
        )
        counts: dict[str, Any] = state.result()
        return counts

    # while a pool is open the fork server stays, and with it the decoders it has loaded: builds
    # that follow one another in this process need not load them again
    with DecodePool(1):
        yield run


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if not Path(RCLONE).exists():
        pytest.skip("rclone is not installed")
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder / "buckets", folder / "log")
    server.folder.mkdir()
    process = server.start()
    yield server
    process.stop()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The S3 endpoint, with its credentials where every S3 library looks for them."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # connections opened under another test's environment must not be found again
    storage_calls._filesystem.cache_clear()
    yield s3_server
    storage_calls._filesystem.cache_clear()
