"""Run the benchmarks one after another, print one table, and write docs/performance.md.

    python -m benchmarks                    everything: about half an hour; or `make bench`
    python -m benchmarks --only rebuild     some of it; the page is written only with --out

Each benchmark has a process of its own. One that fails gives a row that says so; the others go on,
and the suite ends with status 1. What people wrote on the page outside the marks stays.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.page import generated_part, put_between, this_machine
from benchmarks.table import Row, print_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUSE = Path(__file__).parents[1]
PAGE = HOUSE / "docs" / "performance.md"
MODULES = (
    "startup",
    "saturation",
    "cpu_a_record",
    "decoding",
    "engine_front",
    "real_vllm",
    "rebuild",
    "look_ups",
    "planning",
    "memory",
    "prefect_cost",
    "gpu",
)
PART = "table"
_LIMIT_S = 3600.0
_TAIL_LINES = 15


def run_module(name: str, folder: Path) -> tuple[list[Row], str]:
    """Measure in a process of its own.

    Args:
        name: Of a module of `benchmarks`.
        folder: For its output and its rows.

    Returns:
        Its rows, and why it failed; empty: it did not. One that failed has one row that says so.
    """
    rows_path, log_path = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-m", "benchmarks", "--measure", name, str(rows_path)]
    try:
        with log_path.open("wb") as log:
            done = subprocess.run(
                command,
                cwd=HOUSE,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=_LIMIT_S,
                check=False,
            )
        if done.returncode == 0:
            return [Row(**row) for row in json.loads(rows_path.read_text())], ""
        lines = log_path.read_text(errors="replace").splitlines()
        print("\n".join(lines[-_TAIL_LINES:]))
        why = next((line.strip() for line in reversed(lines) if line.strip()), "")
    except subprocess.TimeoutExpired:
        why = f"not done after {_LIMIT_S:.0f} s"
    why = why or f"it ended with {done.returncode}"
    return [Row(name, "failed", "", None, f"python -m benchmarks.{name}", why[:200])], why


def measure_here(name: str, rows_path: Path) -> None:
    """What a process of its own does: measure one module, and leave its rows behind."""
    rows = importlib.import_module(f"benchmarks.{name}").measure()
    rows_path.write_text(json.dumps([asdict(row) for row in rows]))


def run_suite(names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Measure one module after the other, and tell how it goes.

    Returns:
        All rows, and the names of modules that failed.
    """
    rows: list[Row] = []
    failed = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for number, name in enumerate(names, start=1):
            print(f"[{number}/{len(names)}] {name}", end=" ", flush=True)
            started = time.monotonic()
            found, why = run_module(name, Path(folder))
            print(f"{time.monotonic() - started:.0f} s{', FAILED' if why else ''}", flush=True)
            rows += found
            failed += [name] if why else []
    return rows, failed


def main() -> int:
    """Read the command line, run, print, write."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=form
    )
    parser.add_argument(
        "--only", nargs="+", choices=MODULES, metavar="NAME", help=", ".join(MODULES)
    )
    parser.add_argument(
        "--out", type=Path, help="the page (default: docs/performance.md if all run)"
    )
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure_here(given.measure[0], Path(given.measure[1]))
        return 0
    machine = this_machine()
    rows, failed = run_suite(given.only or MODULES)
    print_rows(rows)
    out: Path | None = given.out or (None if given.only else PAGE)
    if out is not None:
        page = out.read_text(encoding="utf-8") if out.exists() else ""
        out.write_text(put_between(page, PART, generated_part(rows, machine)), encoding="utf-8")
        print(f"written: {out}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
