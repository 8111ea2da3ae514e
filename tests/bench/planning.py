"""Planning a million rows: memory, and time against a loop of bare `json.loads`.

python -m tests.bench.planning --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from tests.bench.builds import Cost, run_python

REPEATS = 3

PLAN = """
import json, sys
from datetime import UTC, datetime
from earwitness.heap import bound_heap
bound_heap()
from earwitness.build.layout import Build
from earwitness.build.plan import plan_build
from earwitness.build.prepare import resolve_settings
from earwitness.identity import ModelIdentity
from earwitness.settings import BuildSettings
manifest, output = sys.argv[1:]
settings = resolve_settings(BuildSettings(manifest=manifest, output=output))
model = ModelIdentity("declared", "none", "")
plan = plan_build(Build(output, "b-1"), settings, model, datetime.now(tz=UTC))
print(json.dumps({"rows": plan.rows}))
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
IMPORTS = PLAN.partition("manifest, output")[0] + 'print("{}")'


def write_manifest(path: Path, rows: int) -> None:
    """A manifest as labs have them: a clip, a question, a few fields to carry through."""
    with path.open("w", encoding="utf-8") as lines:
        for row in range(rows):
            record = {
                "id": f"clip-{row:09d}",
                "audio": [f"s3://clips/{row % 1000:03d}/{row:09d}.flac"],
                "conversation": [{"from": "human", "value": "What can be heard, and how often?"}],
                "source": "field recordings",
                "duration": 3.25,
            }
            lines.write(json.dumps(record) + "\n")


def measure(rows: int, folder: Path) -> dict[str, float]:
    """Plan and load in turn, a few times; medians, the planning's imports apart."""
    manifest = folder / "manifest.jsonl"
    write_manifest(manifest, rows)
    plans: list[Cost] = []
    loads: list[Cost] = []
    for repeat in range(REPEATS):
        loads.append(run_python(LOADS, str(manifest)))
        plans.append(run_python(PLAN, str(manifest), str(folder / f"out-{repeat}")))
    imports = statistics.median(run_python(IMPORTS).cpu_s for _ in range(REPEATS))
    plan_s = statistics.median(cost.cpu_s for cost in plans) - imports
    loads_s = statistics.median(cost.cpu_s for cost in loads)
    return {
        "rows": rows,
        "planning, CPU us a row": 1e6 * plan_s / rows,
        "json.loads, CPU us a row": 1e6 * loads_s / rows,
        "planning / json.loads": plan_s / loads_s,
        "peak RSS, MB": max(cost.peak_kib for cost in plans) / 1000 * 1.024,
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="planning-") as folder:
        for name, value in measure(given.rows, Path(folder)).items():
            print(f"{name:<40} {value:>12,.2f}")


if __name__ == "__main__":
    main()
