"""Memory of whole builds of N and of ten times N records.

    python -m benchmarks.memory --records 2000

Every record has a clip of its own, a tenth of a second long; the stand-in engine answers at once.
Counted are the peak of the process that runs the flow, as the kernel kept it, and beside it the
most that all processes below it (decode workers and what forks them) held together, sampled:
their own share of what is no library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from benchmarks.builds import BUILD, HOUSE, prefect_server
from benchmarks.processes import peak_kib, workers_kib
from benchmarks.table import Row, print_rows
from tests.integration.workbench import StandIn, record, tone, write_clip, write_manifest

SCRIPT = "python -m benchmarks.memory"
GOAL = 1.1
TIMES = 10
_EVERY_S = 0.25


@dataclass
class Peaks:
    """What a build held at most, in KiB."""

    main_kib: int = 0
    workers_kib: int = 0


def measure(records: int = 2000) -> list[Row]:
    """Build of so many records, and of ten times as many.

    Args:
        records: Of the small one.
    """
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder = Path(name)
        engine = StandIn(folder / "engine.log")
        try:
            with prefect_server(folder / "prefect") as environment:
                few = build_peaks(folder, records, engine.url, environment)
                many = build_peaks(folder, TIMES * records, engine.url, environment)
        finally:
            engine.stop()
    parts = [
        ("the flow's process", few.main_kib, many.main_kib),
        ("decode workers together", few.workers_kib, many.workers_kib),
    ]
    return [_row(part, small, large, records) for part, small, large in parts]


def _row(part: str, small_kib: int, large_kib: int, records: int) -> Row:
    ratio = large_kib / small_kib
    return Row(
        f"memory of {part}, {TIMES * records:,} ÷ {records:,} records",
        f"{ratio:.2f}",
        f"≤ {GOAL}",
        ratio <= GOAL,
        SCRIPT,
        f"{large_kib / 1024:,.0f} MB and {small_kib / 1024:,.0f} MB",
    )


def build_peaks(folder: Path, rows: int, engine: str, environment: dict[str, str]) -> Peaks:
    """Build in a process of its own, looked at while it runs."""
    manifest = write_input(folder / f"in-{rows}", rows)
    settings = {
        "manifest": str(manifest),
        "output": str(folder / f"out-{rows}"),
        "engine": {"url": [engine]},
    }
    command = [sys.executable, "-c", BUILD, json.dumps(settings)]
    peaks, ended = Peaks(), threading.Event()
    env = {**os.environ, "PYTHONPATH": str(HOUSE), **environment}
    with subprocess.Popen(
        command, cwd=HOUSE, env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks, ended))
        watcher.start()
        assert process.stdout is not None
        printed = process.stdout.read()
        ended.set()
        watcher.join()
    counts = json.loads(printed.splitlines()[-1])
    assert counts["generated"] == rows, counts
    return peaks


def write_input(folder: Path, rows: int) -> Path:
    """As many clips as records, all of them different."""
    records = []
    for row in range(rows):
        # pitch and length together tell them apart
        sound = tone(100 + row % 7000, 0.1 + row // 7000 / 1000)
        clip = write_clip(folder / f"{row // 1000:03d}" / f"{row:06d}.wav", sound)
        records.append(record(clip, id=row))
    return write_manifest(folder / "manifest.jsonl", records)


def _watch(pid: int, peaks: Peaks, ended: threading.Event) -> None:
    while not ended.wait(_EVERY_S):
        peaks.main_kib = max(peaks.main_kib, peak_kib(pid))
        peaks.workers_kib = max(peaks.workers_kib, workers_kib(pid))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=2000)
    print_rows(measure(parser.parse_args().records))


if __name__ == "__main__":
    main()
