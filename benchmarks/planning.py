"""Planning a million rows: memory, and time against a loop of bare `json.loads`.

    python -m benchmarks.planning --rows 1000000

Both are processes of their own, measured in CPU seconds as the kernel counts them, in turn; what
planning imports is measured apart and taken off. Each is one process with one busy thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.builds import Cost, run_python
from benchmarks.table import Row, print_rows

SCRIPT = "python -m benchmarks.planning"
GOAL_RATIO = 3.0
GOAL_MB = 300
REPEATS = 3

IMPORTS = """
import json, sys
from datetime import UTC, datetime
from earwitness.heap import bound_heap
bound_heap()
import pyarrow, pyarrow.compute, earwitness.manifest.columns, earwitness.manifest.schema
from earwitness.builds.layout import Build
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.identity import ModelIdentity
from earwitness.settings import BuildSettings
"""
PLAN = f"""{IMPORTS}
manifest, output = sys.argv[1:]
settings = resolve_settings(BuildSettings(manifest=manifest, output=output))
model = ModelIdentity("declared", "none", "")
plan = plan_build(Build(output, "b-1"), settings, model, datetime.now(tz=UTC))
print(json.dumps({{"rows": plan.rows}}))
"""
LOADS = """
import json, sys
rows = 0
with open(sys.argv[1], "rb") as lines:
    for line in lines:
        json.loads(line)
        rows += 1
print(json.dumps({"rows": rows}))
"""


def write_manifest(path: Path, rows: int, *, alike: bool = True) -> None:
    """A manifest as labs have them: a clip, a question, a few fields to carry through.

    Args:
        path: Where it goes.
        rows: How many records.
        alike: All of one make, with one question; else of many: other fields, other lengths,
            other questions from row to row.
    """
    with path.open("w", encoding="utf-8") as lines:
        for row in range(rows):
            asked = "What can be heard, and how often?"
            record = {
                "id": f"clip-{row:09d}",
                "audio": [f"s3://clips/{row % 1000:03d}/{row:09d}.flac"],
                "conversation": [
                    {"from": "human", "value": asked if alike else f"{asked} ({row})"}
                ],
                "source": "field recordings",
                "duration": 3.25,
            }
            if not alike:
                record |= {"labels": ["a", "b", "c", "d"][: row % 5], "split": row % 3 or None}
            lines.write(json.dumps(record) + "\n")


def measure(rows: int = 1_000_000, mixed_rows: int = 200_000) -> list[Row]:
    """Plan and load in turn, a few times.

    Args:
        rows: Of the manifest whose records are of one make.
        mixed_rows: Of the one whose records are of many.

    Returns:
        Time, memory, and the time of a manifest of many makes.
    """
    imports_s = statistics.median(run_python(f"{IMPORTS}print({{}})").cpu_s for _ in range(REPEATS))
    ratio, told, peak_mb = _compared(rows, imports_s, alike=True)
    mixed, mixed_told, mixed_mb = _compared(mixed_rows, imports_s, alike=False)
    one_process = "CPU seconds, medians of alternating runs; both in one process and one thread"
    return [
        Row(
            f"planning {rows:,} rows ÷ bare json.loads",
            f"{ratio:.2f}",
            f"≤ {GOAL_RATIO:g}",
            ratio <= GOAL_RATIO,
            SCRIPT,
            f"{told}; {one_process}",
        ),
        Row(
            f"planning {rows:,} rows: peak RSS",
            f"{peak_mb:.0f} MB",
            f"≤ {GOAL_MB} MB",
            peak_mb <= GOAL_MB,
            SCRIPT,
        ),
        Row(
            f"planning {mixed_rows:,} rows of 15 kinds ÷ bare json.loads",
            f"{mixed:.2f}",
            "",
            None,
            SCRIPT,
            f"{mixed_told}; peak RSS {mixed_mb:.0f} MB; each row differs in kind from the last",
        ),
    ]


def _compared(rows: int, imports_s: float, *, alike: bool) -> tuple[float, str, float]:
    """Planning's share of time, what it is made of, and its peak RSS in MB."""
    plans: list[Cost] = []
    loads: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="planning-") as name:
        folder = Path(name)
        manifest = folder / "manifest.jsonl"
        write_manifest(manifest, rows, alike=alike)
        for repeat in range(REPEATS):
            loads.append(run_python(LOADS, str(manifest)))
            plans.append(run_python(PLAN, str(manifest), str(folder / f"out-{repeat}")))
    plan_s = statistics.median(cost.cpu_s for cost in plans) - imports_s
    loads_s = statistics.median(cost.cpu_s for cost in loads)
    told = f"{1e6 * plan_s / rows:.1f} µs per row, json.loads {1e6 * loads_s / rows:.1f}"
    return plan_s / loads_s, told, max(cost.peak_kib for cost in plans) * 1.024 / 1000


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    print_rows(measure(parser.parse_args().rows))


if __name__ == "__main__":
    main()
