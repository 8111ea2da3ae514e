"""Prefect's server on SQLite under many writers, and its PostgreSQL where one is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Completed, Pending, Running
from workbench import free_port, wait_for

from deployments.postgres import Cluster, find_programs
from deployments.temporary_server import server_command
from earwitness.engine.guardian import start_guarded
from earwitness.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

HOUSE = Path(__file__).parents[2]
WRITERS, WRITE_S = 6, 8.0
SLOWEST_S = 20.0
INSTALLED = find_programs()
needs_postgres = pytest.mark.skipif(
    INSTALLED is None, reason="PostgreSQL is not installed: apt-get install postgresql"
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server with all its services, as `make up` starts it without PostgreSQL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_LOG_RETRYABLE_ERRORS": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    command = server_command(port)
    running = start_guarded(command, log_path=tmp_path / "server.log", env=settings)
    try:
        wait_for(f"{url}/health", running, tmp_path / "server.log")
        yield url
    finally:
        running.stop()


class Writer(threading.Thread):
    """Does to a server what a worker and its flow runs do, and notes how long each request took."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.pool = f"pool-{number}"
        self.slowest_s, self.refused, self.runs = 0.0, 0, 0
        self._url = url

    def run(self) -> None:
        limit = time.monotonic() + WRITE_S
        with SyncPrefectClient(self._url) as client:
            client._client.event_hooks = {"request": [self._begin], "response": [self._end]}
            client.create_work_pool(WorkPoolCreate(name=self.pool, type="process"))
            flow = client.create_flow(load_flow_from_entrypoint("flows.build_shard.build_shard"))
            deployment = client.create_deployment(flow, name=self.pool, work_pool_name=self.pool)
            while time.monotonic() < limit:
                run = client.create_flow_run_from_deployment(
                    deployment, parameters={"build": "b", "shard": 0}
                )
                name = {"name": self.pool}
                path = "/work_pools/{name}/get_scheduled_flow_runs"
                client.request("POST", path, path_params=name, json={"limit": 5})
                beat = {"name": "worker", "heartbeat_interval_seconds": 30}
                client.request(
                    "POST", "/work_pools/{name}/workers/heartbeat", path_params=name, json=beat
                )
                for state in (Pending(), Running(), Completed()):
                    client.set_flow_run_state(run.id, state)
                self.runs += 1

    def _begin(self, request: httpx.Request) -> None:
        request.extensions["begun"] = time.monotonic()

    def _end(self, response: httpx.Response) -> None:
        took_s = time.monotonic() - response.request.extensions["begun"]
        self.slowest_s = max(self.slowest_s, took_s)
        self.refused += response.status_code >= 500


def test_many_writers_at_once_meet_no_lock_on_sqlite(server: str, tmp_path: Path):
    writers = [Writer(server, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "server.log").read_text().count("database is locked") == 0
    assert sum(writer.refused for writer in writers) == 0
    assert all(writer.runs for writer in writers)
    assert max(writer.slowest_s for writer in writers) < SLOWEST_S


LOCAL = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from deployments import local

async def compiles(url):
    database = await asyncpg.connect(url.replace("+asyncpg", ""))
    return await database.fetchval("SHOW jit")

local.FOLDER.mkdir(parents=True, exist_ok=True)
programs = Path(sys.argv[1]) if sys.argv[1] else None
given = local.start_database(programs, local._environment("http://127.0.0.1:1"))
url = given.get("PREFECT_SERVER_DATABASE_CONNECTION_URL", "sqlite")
print(url)
if sys.argv[2:] == ["jit"]:
    print(asyncio.run(compiles(url)))
local.down()
print(local._ours())
if sys.argv[2:] == ["clean"]:
    local._clean()
    print(local._cluster(programs)._folder.exists())
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A checkout of its own, whose `make up` is not the real one's."""
    house = tmp_path / "house"
    house.mkdir()
    for entry in ("deployments", "earwitness"):
        (house / entry).symlink_to(HOUSE / entry)
    return house


def start_database(house: Path, programs: Path | None, *words: str) -> tuple[list[str], str]:
    """What `make up` does about its database: the lines it gave, and what it told."""
    done = subprocess.run(
        [sys.executable, "-c", LOCAL, str(programs or ""), *words],
        env={**os.environ, "PYTHONPATH": str(house)},
        cwd=house,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@needs_postgres
def test_make_up_keeps_its_runs_in_postgresql_where_it_is_installed(house: Path):
    (first, *left), told = start_database(house, INSTALLED)
    assert (first.partition("://")[0], left, told) == ("postgresql+asyncpg", ["[]"], "")
    # the second start finds what the first one made, and its password
    (second, *left), _ = start_database(house, INSTALLED, "clean")
    assert second.split("@")[0] == first.split("@")[0]
    assert left == ["[]", "False"]


@needs_postgres
def test_the_postgresql_of_make_up_compiles_no_query(house: Path):
    # with many runs, the query behind a run's graph was compiled for up to its time-out of 10 s
    assert start_database(house, INSTALLED, "jit")[0][1] == "off"
    start_database(house, INSTALLED, "clean")


def test_make_up_without_postgresql_says_so_and_uses_sqlite(house: Path):
    lines, told = start_database(house, None)
    assert lines == ["sqlite", "[]"]
    assert (
        told == "+ using SQLite: PostgreSQL is not installed (Debian: apt-get install postgresql)\n"
    )


def test_a_postgresql_that_cannot_be_used_is_told_and_sqlite_is_used(house: Path, tmp_path: Path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {
        "postgres": "echo postgres 99.1",
        "initdb": "echo no room on the disk >&2; exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    for folder in (programs, *programs.parents[:3]):
        folder.chmod(0o755)
    lines, told = start_database(house, programs, "clean")
    assert lines == ["sqlite", "[]", "False"]
    why = "PostgreSQL's initdb failed: no room on the disk"
    assert told == f"+ using SQLite: PostgreSQL cannot be used ({why})\n"


def test_the_newest_postgresql_is_taken(tmp_path: Path):
    for version in ("9.6", "15", "17"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()
    if INSTALLED is not None:
        assert find_programs(tmp_path) == tmp_path / "17" / "bin"


@needs_postgres
def test_a_folder_that_others_may_enter_is_no_place_for_a_database(tmp_path: Path):
    assert INSTALLED is not None
    (tmp_path / "cluster").mkdir(mode=0o755)
    with pytest.raises(FatalError, match="cluster has to be private to its owner: remove it"):
        Cluster(tmp_path / "cluster", INSTALLED).make()
