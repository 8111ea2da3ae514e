"""What Prefect costs a record: its client (the worker and the flow runs) and its server.

    python -m benchmarks.prefect_cost --shards 6

A difference between a build with Prefect and one without drowns in the noise of the build's own
work. So the work is left out: a real worker takes from a real pool flow runs with exactly a
shard's task runs, options, references, window and artifact, whose functions do nothing
(`benchmarks.prefect_noop`). All CPU of the worker and its flow runs is then Prefect's, imports
included, and so is the server's. Records are nominal: what a shard of this many batches has.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.builds import HOUSE, run_python
from benchmarks.processes import cpu_s
from benchmarks.table import Row, print_rows
from earwitness.engine.guardian import start_guarded
from earwitness.settings import LayoutSettings
from tests.integration.workbench import free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = "python -m benchmarks.prefect_cost"
GOAL_MS = 1.0
SHARDS = 6
_BEGUN_S = 15.0
"""After this long servers and workers have done what they do at their start."""
_SETTLED_S = 10.0
"""The server writes events a little later."""


@dataclass(frozen=True, slots=True)
class PrefectCost:
    """What shards of nothing cost.

    Attributes:
        shards: How many.
        batches: Of each.
        records: That so many shards would have.
        client_s: CPU seconds of the worker and its flow runs.
        server_s: CPU seconds of the server.
        database_bytes: What its database has grown by.
        wall_s: How long it took.
    """

    shards: int
    batches: int
    records: int
    client_s: float
    server_s: float
    database_bytes: int
    wall_s: float

    @property
    def task_runs(self) -> int:
        """Of all shards."""
        return self.shards * (4 * self.batches + 2)


@contextmanager
def prefect_server(home: Path) -> Iterator[tuple[dict[str, str], int]]:
    """A real server on SQLite with its services: the environment for clients, and its process."""
    home.mkdir(parents=True)
    port = free_port()
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PYTHONPATH": str(HOUSE),
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    server = start_guarded(command, log_path=home / "log", env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, home / "log")
        yield environment, server.pid
    finally:
        server.stop()


@contextmanager
def pool_worker(environment: dict[str, str], log_path: Path) -> Iterator[int]:
    """The product's worker on the pool for shards, one at a time; its process."""
    command = [sys.executable, "-m", "deployments.setup"]
    done = subprocess.run(
        command,
        cwd=HOUSE,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    command = [sys.executable, "-m", "cli.main", "worker", "--pool", "gpu", "--limit", "1"]
    worker = start_guarded(command, log_path=log_path, env=environment)
    try:
        time.sleep(_BEGUN_S)
        yield worker.pid
    finally:
        worker.stop()


def hand_out(shards: int, batches: int, layout: LayoutSettings) -> None:
    """Deploy the flow of nothing to the pool, start its runs, and wait for them all."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("noop-shard")
        deployment = client.create_deployment(
            flow,
            "gpu",
            work_pool_name="gpu",
            entrypoint="benchmarks.prefect_noop.noop_shard",
            pull_steps=[{"deployments.steps.check_version": {"version": _version()}}],
        )
        given = {"batches": batches, "rows": layout.batch_rows, "window": layout.window_batches}
        runs = [
            client.create_flow_run_from_deployment(
                deployment, parameters={"build": "noop", "shard": shard, **given}
            ).id
            for shard in range(shards)
        ]
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=runs))
        while not all(
            run.state and run.state.is_final()
            for run in client.read_flow_runs(flow_run_filter=wanted)
        ):
            time.sleep(1)
        ends = {
            run.state.name if run.state else ""
            for run in client.read_flow_runs(flow_run_filter=wanted)
        }
        if ends != {"Completed"}:
            raise SystemExit(f"runs of nothing ended {ends}")


def _version() -> str:
    import earwitness

    return earwitness.__version__


def database_bytes(home: Path) -> int:
    """What the database takes, its write-ahead log included."""
    return sum(path.stat().st_size for path in home.glob("prefect.db*"))


def cost_of(shards: int, folder: Path) -> PrefectCost:
    """Have a worker do so many shards of nothing.

    Args:
        shards: How many, of the default size.
        folder: For the server's home.
    """
    layout = LayoutSettings()
    batches = -(-layout.shard_rows // layout.batch_rows)
    home = folder / "prefect"
    bare = run_python(
        "import runpy, sys; runpy.run_module('benchmarks.prefect_noop', run_name='__main__')",
        str(batches),
        str(layout.batch_rows),
    )
    with (
        prefect_server(home) as (environment, server),
        pool_worker(environment, folder / "worker.log") as worker,
    ):
        started, client_s, server_s = time.monotonic(), cpu_s(worker), cpu_s(server)
        size = database_bytes(home)
        words = ["-m", "benchmarks.prefect_cost", "--hand-out", str(shards), str(batches)]
        env = {**os.environ, **environment}
        subprocess.run([sys.executable, *words], cwd=HOUSE, env=env, check=True)
        wall_s = time.monotonic() - started
        client_s = cpu_s(worker) - client_s - shards * bare.counts["cpu_s"]
        time.sleep(_SETTLED_S)
        server_s, grown = cpu_s(server) - server_s, database_bytes(home) - size
    records = shards * layout.shard_rows
    return PrefectCost(shards, batches, records, client_s, server_s, grown, wall_s)


def measure(shards: int = SHARDS) -> list[Row]:
    """Measure, and tell what it is a record.

    Args:
        shards: How many.
    """
    with tempfile.TemporaryDirectory(prefix="prefect-cost-") as folder:
        found = cost_of(shards, Path(folder))
    client_ms = 1000 * found.client_s / found.records
    server_ms = 1000 * found.server_s / found.records
    size = f"{shards} shards of {found.batches} batches; {found.task_runs:,} task runs"
    both_ms = client_ms + server_ms
    note = f"client {client_ms:.2f} ms, server {server_ms:.2f} ms; {size}"
    a_task = f"{1000 * found.server_s / found.task_runs:.0f} ms of server CPU per task run"
    bytes_a_record = f"{found.database_bytes / found.records:.0f} bytes"
    return [
        Row(
            "Prefect: CPU per record",
            f"{both_ms:.2f} ms",
            f"<= {GOAL_MS:g} ms",
            both_ms <= GOAL_MS,
            SCRIPT,
            note,
        ),
        Row("Prefect: server CPU per record", f"{server_ms:.2f} ms", "", None, SCRIPT, a_task),
        Row("Prefect: database per record", bytes_a_record, "", None, SCRIPT, "SQLite"),
        Row(
            "Prefect: empty run of a shard",
            f"{found.wall_s / found.shards:.1f} s",
            "",
            None,
            SCRIPT,
            "wall time, one run at a time; engine work has to hide it",
        ),
    ]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--hand-out", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hand_out:
        hand_out(*given.hand_out, LayoutSettings())
        return
    print_rows(measure(given.shards))


if __name__ == "__main__":
    main()
