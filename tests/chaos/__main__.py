"""The campaign: faults and attacks of every kind, seeded, and a table of what held.

    python -m tests.chaos                       every kind, some minutes
    python -m tests.chaos --minutes 120         for hours
    python -m tests.chaos --only kills --seed 7 one kind, exactly as it was

Ends with 1 when a promise was broken; the line then says how to make it happen again.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tests.chaos.report import Held

KINDS = ("kills", "storage", "engine", "audio", "manifests")
MINUTES = 15.0
"""For all kinds together; the shares are those of their minimum's length."""
_LOG_COLUMNS = 160
SHARES = {"kills": 0.5, "storage": 0.2, "engine": 0.15, "audio": 0.1, "manifests": 0.05}


def main() -> int:
    """Run the campaign.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="what is drawn follows from it")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="roughly, for all of it")
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {', '.join(KINDS)}")
    given = parser.parse_args()
    kinds = given.only.split(",")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        parser.error(f"no kind of fault: {', '.join(unknown)} (there are {', '.join(KINDS)})")
    shares = sum(SHARES[kind] for kind in kinds)
    broken = 0
    table = Table("", "promise", "tried", "held", "", title=f"seed {given.seed}")
    for kind in kinds:
        started = time.monotonic()
        found = _run(kind, given.seed, given.minutes * SHARES[kind] / shares)
        took_s = time.monotonic() - started
        for one in found:
            told = "[red]BROKEN[/red]" if one.failed else "held"
            table.add_row(told, one.what, f"{one.tried:,}", f"{one.held:,}", one.detail)
            broken += one.failed
        table.add_row("", f"({kind}: {took_s:,.0f} s)", "", "", "", end_section=True)
    Console(width=None if sys.stdout.isatty() else _LOG_COLUMNS).print(table)
    return 1 if broken else 0


def _run(kind: str, seed: int, minutes: float) -> list[Held]:
    campaign = importlib.import_module(f"tests.chaos.{kind}")
    with tempfile.TemporaryDirectory(prefix=f"chaos-{kind}-") as folder:
        held: list[Held] = campaign.run(Path(folder), seed=seed, minutes=minutes)
    return held


if __name__ == "__main__":
    sys.exit(main())
