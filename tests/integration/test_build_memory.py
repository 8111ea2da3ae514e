"""A build's memory does not grow with its manifest, nor with its shards: all sizes are defaults.

What counts: the peak RSS of the process that runs the flow, as the kernel keeps it (getrusage would
tell this process's own, which it was forked from), and beside it the most its decode workers held
together, sampled. The engine and Prefect's server are processes of others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import record, tone, write_clip, write_manifest

from benchmarks.processes import peak_kib, workers_kib

if TYPE_CHECKING:
    from workbench import StandIn

ROOT = Path(__file__).parents[2]
QUESTIONS_PER_CLIP = 10
"""The small build has 200 clips then: enough for each decode worker to come to its full size."""
ALLOWED_RATIO = 1.10

BUILD = """
import sys
from earwitness.heap import bound_heap
bound_heap()  # as the command line does, before there are threads
from earwitness.settings import EngineSettings
from flows.build_dataset import build_dataset
manifest, output, url = sys.argv[1:]
counts = build_dataset(
    manifest,
    output,
    engine=EngineSettings(url=(url,)),
)
print(counts["generated"])
"""


def build_peaks(folder: Path, rows: int, engine: str) -> dict[str, int]:
    """Build in a process of its own; the peaks in KiB of it and of all its workers together."""
    lines = [
        record(f"clips/{row // QUESTIONS_PER_CLIP}.wav", f"What is it ({row})?", id=row)
        for row in range(rows)
    ]
    manifest = write_manifest(folder / f"{rows}.jsonl", lines)
    command = [sys.executable, "-c", BUILD, str(manifest), str(folder / f"out-{rows}"), engine]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    main = workers = 0
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            main = max(main, peak_kib(process.pid))
            workers = max(workers, workers_kib(process.pid))
            time.sleep(0.2)
        assert process.stdout is not None
        assert int(process.stdout.read().split()[-1]) == rows
    return {"main": main, "workers": workers}


def test_ten_times_the_records_take_no_more_memory(
    tmp_path: Path, prefect_server: str, stand_in: StandIn
) -> None:
    assert prefect_server
    many, few = 20_000, 2_000
    for number in range(many // QUESTIONS_PER_CLIP):
        write_clip(tmp_path / f"clips/{number}.wav", tone(200 + number))
    peaks = {rows: build_peaks(tmp_path, rows, stand_in.url) for rows in (few, many)}
    ratios = {part: round(peaks[many][part] / peaks[few][part], 3) for part in peaks[few]}
    told = json.dumps({**peaks, "ratios": ratios})
    print(told)  # noqa: T201 - shown where the test fails, and with -s
    assert max(ratios.values()) <= ALLOWED_RATIO, told
