"""What benchmarks share: a Prefect server, builds in processes of their own, what these cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwitness.engine.guardian import start_guarded
from tests.integration.workbench import free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

HOUSE = Path(__file__).parents[1]

BUILD = """
import json, sys
from earwitness.heap import bound_heap
bound_heap()  # as the command line does, before there are threads
from earwitness.settings import BuildSettings
from flows.build_dataset import build_dataset
given = BuildSettings.model_validate_json(sys.argv[1])
fields = (
    "model", "question", "max_tokens", "engine", "sampling", "audio", "input", "layout"
)
chosen = {name: getattr(given, name) for name in fields if name in given.model_fields_set}
counts = build_dataset(given.manifest, given.output, **chosen)
print(json.dumps(counts))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process, with all it started and waited for, has cost.

    Attributes:
        wall_s: From its start to its end.
        cpu_s: Of all its processes.
        peak_kib: The most memory one of its processes had.
        counts: What it printed last.
    """

    wall_s: float
    cpu_s: float
    peak_kib: int
    counts: dict[str, Any]


@contextmanager
def prefect_server(home: Path) -> Iterator[dict[str, str]]:
    """A real Prefect server; the environment in which flows report to it."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    server = start_guarded(
        [*command, "--no-ui", "--no-services"], log_path=home / "log", env=environment
    )
    try:
        wait_for(f"{environment['PREFECT_API_URL']}/health", server, home / "log")
        yield environment
    finally:
        server.stop()


def build(settings: dict[str, Any], environment: dict[str, str]) -> Cost:
    """Run one build in a process of its own.

    Args:
        settings: As `BuildSettings` takes them.
        environment: What is added to this process's.
    """
    return run_python(BUILD, json.dumps(settings), environment=environment)


def run_python(code: str, *words: str, environment: dict[str, str] | None = None) -> Cost:
    """Run code in a process of its own that prints a JSON object last."""
    command = [sys.executable, "-c", code, *words]
    env = {**os.environ, "PYTHONPATH": str(HOUSE), **(environment or {})}
    started = time.perf_counter()
    with subprocess.Popen(
        command, cwd=HOUSE, env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"it ended with {process.returncode}")
    counts = json.loads(printed.splitlines()[-1])
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, counts)
