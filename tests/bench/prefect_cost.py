"""What Prefect costs a record: the same build with it and without, side by side.

    python -m tests.bench.prefect_cost --rows 100000

Both builds run the same functions with the same window on a stand-in engine that answers at once, a
process a shard. With Prefect they are tasks of flow runs that a real worker takes from a pool. The
difference in the builds' own CPU, the worker's included, is the client's share; the server's is its
process's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwitness.engine.guardian import start_guarded
from tests.integration.workbench import (
    StandIn,
    free_port,
    record,
    tone,
    wait_for,
    write_clip,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUSE = Path(__file__).parents[2]
CLIPS = 200
_BEGUN_S = 20.0
"""After this long servers have done what they do at their start."""
_TICKS = os.sysconf("SC_CLK_TCK")


def make_manifest(folder: Path, rows: int) -> Path:
    """A manifest of so many questions about a few clips."""
    clips = [write_clip(folder / f"{n}.wav", tone(200 + n)) for n in range(CLIPS)]
    records = [record(clips[row % CLIPS], f"What is {row}?", id=row) for row in range(rows)]
    return write_manifest(folder / "m.jsonl", records)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and of the children it has waited for, and of living descendants."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    own = sum(map(int, stat[11:15])) / _TICKS
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return own + sum(cpu_s(int(child)) for child in children)


def run_bare(build: str, shard: int) -> None:
    """The same tasks' functions in the same window, without Prefect."""
    from earwitness.build.layout import Build
    from earwitness.runtime import running
    from tasks.decode import decode
    from tasks.fetch import fetch
    from tasks.generate import generate
    from tasks.persist import persist
    from tasks.resolve import resolve
    from tasks.validate import validate

    def value(result: Any) -> Any:
        return getattr(result, "data", result)

    settings = Build.at(build).plan.settings
    with running(settings, settings.model):
        resolved = value(resolve.fn(build, shard))

        def batch(ref: Any) -> None:
            generate.fn(decode.fn(validate.fn(fetch.fn(ref, resolved.rows))))

        with ThreadPoolExecutor(settings.layout.window_batches) as pool:
            list(pool.map(batch, resolved.batches))
        persist.fn(build, shard)


def planned(manifest: Path, output: Path, url: str) -> tuple[str, int]:
    """Plan a build; its address and how many shards it has."""
    from datetime import UTC, datetime

    from earwitness.build.layout import Build
    from earwitness.build.plan import plan_build
    from earwitness.build.prepare import resolve_model, resolve_settings
    from earwitness.settings import BuildSettings, EngineSettings

    settings = resolve_settings(
        BuildSettings(manifest=str(manifest), output=str(output), engine=EngineSettings(url=(url,)))
    )
    name, model = resolve_model(settings)
    settings = settings.model_copy(update={"model": name})
    build = Build(settings.output, "b-1")
    return build.uri, len(plan_build(build, settings, model, datetime.now(tz=UTC)).shards)


def build_bare(build: str, shards: int) -> float:
    """Do all shards, one process after the other; their CPU seconds."""
    before = sum(os.times()[2:4])
    for shard in range(shards):
        words = ["-m", "tests.bench.prefect_cost", "--shard", build, str(shard)]
        subprocess.run([sys.executable, *words], cwd=HOUSE, check=True)
    return sum(os.times()[2:4]) - before


def build_on_pool(build: str, shards: int, folder: Path, environment: dict[str, str]) -> float:
    """Have a worker do all shards, one after the other; its CPU seconds, theirs included."""
    for command in (["deployments.setup"], ["prefect", "deploy", "--all", "--no-prompt"]):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=HOUSE,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
    command = [sys.executable, "-m", "cli.main", "worker", "--pool", "gpu", "--limit", "1"]
    worker = start_guarded(command, log_path=folder / "worker.log", env=environment)
    try:
        time.sleep(_BEGUN_S)
        before = cpu_s(worker.pid)
        words = ["-m", "tests.bench.prefect_cost", "--hand-out", build, str(shards)]
        subprocess.run(
            [sys.executable, *words], cwd=HOUSE, env={**os.environ, **environment}, check=True
        )
        return cpu_s(worker.pid) - before
    finally:
        worker.stop()


def hand_out(build: str, shards: int) -> None:
    """What a parent does: hand the shards to the pool and wait."""
    from earwitness.build.layout import Build
    from flows.attempt import answer_on_pool

    answer_on_pool(Build.at(build), list(range(shards)), "build-shard/gpu", at_once=1)


def prefect_server(home: Path) -> Iterator[tuple[dict[str, str], int, Path]]:
    """A real server on SQLite: its environment for clients, its process and its database."""
    port = free_port()
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    server = start_guarded(command, log_path=home / "log", env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/health", server, home / "log")
        time.sleep(_BEGUN_S)
        yield environment, server.pid, home / "prefect.db"
    finally:
        server.stop()


def database_bytes(database: Path) -> int:
    """What the database takes, its write-ahead log included."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def measure(rows: int, folder: Path) -> dict[str, float]:
    """Build with Prefect and without; what it cost a record."""
    manifest = make_manifest(folder, rows)
    engine = StandIn(folder / "engine.log")
    (folder / "prefect").mkdir()
    try:
        build, shards = planned(manifest, folder / "bare", engine.url)
        bare_s = build_bare(build, shards)
        for environment, server, database in prefect_server(folder / "prefect"):
            build, shards = planned(manifest, folder / "with", engine.url)
            size, server_s = database_bytes(database), cpu_s(server)
            with_s = build_on_pool(build, shards, folder, environment)
            time.sleep(10)  # it writes events a little later
            server_s = cpu_s(server) - server_s
            grown = database_bytes(database) - size
    finally:
        engine.stop()
    return {
        "rows": rows,
        "shards": shards,
        "CPU of the build without Prefect, ms a record": 1000 * bare_s / rows,
        "CPU of the build with it, ms a record": 1000 * with_s / rows,
        "Prefect's client, ms a record": 1000 * (with_s - bare_s) / rows,
        "Prefect's server, ms a record": 1000 * server_s / rows,
        "Prefect in all, ms a record": 1000 * (with_s - bare_s + server_s) / rows,
        "database, bytes a record": grown / rows,
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--shard", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--hand-out", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.shard:
        run_bare(arguments.shard[0], int(arguments.shard[1]))
        return
    if arguments.hand_out:
        hand_out(arguments.hand_out[0], int(arguments.hand_out[1]))
        return
    with tempfile.TemporaryDirectory(prefix="prefect-cost-") as folder:
        for name, value in measure(arguments.rows, Path(folder)).items():
            print(f"{name:<50} {value:>12,.2f}")


if __name__ == "__main__":
    main()
