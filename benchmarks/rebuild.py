"""Building again: when nothing changed, and when one record in a hundred did.

    python -m benchmarks.rebuild --rows 20000

Local folders: a full build fills the cache, then the same manifest is built again, in turn with
one of ten records, which shows what a build costs before its first record (Python, imports,
Prefect's flow runs). The engine is one that each build would start itself: a stand-in that counts
its starts and its requests in files.

S3: clips and output lie on an S3 endpoint whose own log counts every call; the first build there
is not measured.

Small change: one record in a hundred gets another question, then one in a hundred another clip,
answered by a stand-in engine as fast as a GPU (see `RATE`). The full build it is held against is
not waited for: 20,000 answers at that rate take at least 20,000 / rate seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.builds import Cost, prefect_server
from benchmarks.rebuild_places import (
    CHANGED,
    CLIPS_A_FOLDER,
    FEW,
    Place,
    model_folder,
    s3_calls,
    s3_endpoint,
    write_input,
)
from benchmarks.table import Row, print_rows
from tests.integration.workbench import StandIn

if TYPE_CHECKING:
    from tests.integration.workbench import S3Server

SCRIPT = "python -m benchmarks.rebuild"
ROWS = 20_000
RATE, SLOTS = 50, 16
"""Answers a second, and answers at once, of an engine as a GPU has it: one API server process of
vLLM prepares about 50 clips a second."""
REPEATS = 3


def measure(rows: int = ROWS) -> list[Row]:
    """Full builds, rebuilds and small changes.

    Args:
        rows: Records of the manifest.

    Returns:
        Rows for the no-op rebuild and the small change.
    """
    with tempfile.TemporaryDirectory(prefix="rebuild-") as name:
        folder = Path(name)
        source = folder / "buckets" / "bucket" / "in"
        write_input(source, rows)
        with prefect_server(folder / "prefect") as environment:
            local = Place(folder, source, str(source), environment)
            full = local.build(f"{folder}/out")
            found = _no_op_local(local, rows)
            with s3_endpoint(folder) as (buckets, s3):
                away = replace(local, uri="s3://bucket/in", environment={**environment, **s3})
                found += _no_op_s3(away, buckets, rows)
            counted = (
                "--model",
                str(model_folder(folder)),
                "--count-file",
                str(folder / "requests"),
            )
            paced = ("--latency-s", str(SLOTS / RATE), "--slots", str(SLOTS))
            slow = StandIn(folder / "slow.log", *counted, *paced)
            quick = StandIn(folder / "quick.log", *counted)
            try:
                urls = {"slow": slow.url, "quick": quick.url}
                return found + _small_change(local, rows, full, urls)
            finally:
                slow.stop()
                quick.stop()


def _no_op_local(place: Place, rows: int) -> list[Row]:
    few = place.build(f"{place.folder}/few", "few.jsonl")
    starts, requests = place.starts, place.requests
    again, alone = [], []
    for _ in range(REPEATS):
        alone.append(place.build(f"{place.folder}/few", "few.jsonl"))
        again.append(place.build(f"{place.folder}/out"))
    assert few.counts["rows"] == FEW
    assert all(cost.counts["reused"] == rows for cost in again)
    starts, requests = place.starts - starts, place.requests - requests
    start_s, whole_s = _median(alone, "wall_s"), _median(again, "wall_s")
    cpu_s = _median(again, "cpu_s") - _median(alone, "cpu_s")
    speed = (rows - FEW) / (whole_s - start_s)
    what = f"no-op rebuild of {rows:,} records, local"
    return [
        Row(
            f"{what}: records per second",
            f"{speed:,.0f}",
            "≥ 10,000",
            speed >= 10_000,
            SCRIPT,
            f"whole build {whole_s:.1f} s minus a build of {FEW} records, {start_s:.1f} s (Python, "
            f"imports, Prefect); with the start: {rows / whole_s:,.0f} per second; CPU "
            f"{1e6 * cpu_s / rows:.0f} µs per record",
        ),
        Row(f"{what}: engine requests", str(requests), "0", requests == 0, SCRIPT),
        Row(f"{what}: engine starts", str(starts), "0", starts == 0, SCRIPT),
    ]


def _no_op_s3(place: Place, buckets: S3Server, rows: int) -> list[Row]:
    place.build("s3://bucket/out")
    starts, requests = place.starts, place.requests
    fetched = buckets.downloads("bucket", "in/clips/")
    costs, calls = [], []
    for _ in range(2):
        called = s3_calls(buckets)
        costs.append(place.build("s3://bucket/out"))
        calls.append(s3_calls(buckets) - called)
    assert all(cost.counts["reused"] == rows for cost in costs)
    downloads = buckets.downloads("bucket", "in/clips/") - fetched
    starts, requests = place.starts - starts, place.requests - requests
    what = f"no-op rebuild of {rows:,} records, S3"
    return [
        Row(
            f"{what}: all S3 calls per record",
            f"{max(calls) / rows:.4f}",
            "≤ 0.02",
            max(calls) <= 0.02 * rows,
            SCRIPT,
            f"{max(calls)} calls in the server's log, {CLIPS_A_FOLDER} clips per prefix; "
            f"{min(cost.wall_s for cost in costs):.1f} s",
        ),
        Row(f"{what}: clip downloads", str(downloads), "0", downloads == 0, SCRIPT),
        Row(
            f"{what}: engine requests and starts",
            f"{requests}, {starts}",
            "0, 0",
            requests == starts == 0,
            SCRIPT,
        ),
    ]


def _small_change(place: Place, rows: int, full: Cost, urls: dict[str, str]) -> list[Row]:
    slow = replace(place, url=urls["slow"])
    start_s = slow.build(f"{place.folder}/few", "few.jsonl").wall_s
    full_s = max(rows / RATE, full.wall_s)
    found = []
    for what, input_of in (
        ("question", {"asked": "What is it, now?"}),
        ("clip", {"asked": "What is it, now?", "pitch_hz": 1.0}),
    ):
        write_input(place.source, rows, **input_of)
        before = place.requests
        cost = slow.build(f"{place.folder}/out")
        asked = place.requests - before
        assert asked == len(range(0, rows, CHANGED)), asked
        found.append(
            Row(
                f"1 % of {rows:,} records with another {what} ÷ full build",
                f"{cost.wall_s / full_s:.3f}",
                "≤ 0.03",
                cost.wall_s <= 0.03 * full_s,
                SCRIPT,
                f"{cost.wall_s:.1f} s ({asked} asked; {start_s:.1f} s of this is the start: "
                f"Python, imports, Prefect) ÷ {full_s:.0f} s, the time of an engine with {RATE} "
                f"answers per second for {rows:,}; the engine already runs",
            )
        )
    write_input(place.source, rows, asked="What is it, at once?", pitch_hz=1.0)
    cost = replace(place, url=urls["quick"]).build(f"{place.folder}/out")
    found.append(
        Row(
            f"1 % of {rows:,} records with another question ÷ full build, engine without latency",
            f"{cost.wall_s / full.wall_s:.3f}",
            "",
            None,
            SCRIPT,
            f"{cost.wall_s:.1f} s ÷ {full.wall_s:.1f} s; {cost.cpu_s:.1f} ÷ {full.cpu_s:.1f} s CPU",
        )
    )
    return found


def _median(costs: list[Cost], what: str) -> float:
    return float(statistics.median(getattr(cost, what) for cost in costs))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    print_rows(measure(parser.parse_args().rows))


if __name__ == "__main__":
    main()
