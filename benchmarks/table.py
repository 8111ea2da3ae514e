"""The rows that all benchmarks give, and the one table they are printed in."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure.

    Attributes:
        measure: What was measured, with its size: "no-op rebuild of 20,000 records".
        value: The figure with its unit; "not measured" where it could not be.
        goal: What is to be reached; empty where there is none.
        met: Whether it is; None without a goal or without a figure.
        script: The command that measures it again.
        note: What limits it, or what it is compared with.
    """

    measure: str
    value: str
    goal: str
    met: bool | None
    script: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """A word for `met`."""
        return {True: "yes", False: "no", None: ""}[self.met]


def print_rows(rows: Iterable[Row]) -> None:
    """Print rows as a table for people."""
    table = Table("measure", "value", "goal", "met", "note")
    for row in rows:
        table.add_row(row.measure, row.value, row.goal, row.verdict, row.note)
    Console(file=sys.stdout, width=160).print(table)
