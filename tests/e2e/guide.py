"""The operating guide's commands, as an operator types them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pool import Pool

HOUSE = Path(__file__).parents[2]
SECTION = "## First install"


def blocks() -> list[list[str]]:
    """The code blocks of the guide's first install, in order, as lines."""
    text = (HOUSE / "docs/operating.md").read_text()
    section = text.partition(f"{SECTION}\n")[2].partition("\n## ")[0]
    found: list[list[str]] = [[]]
    for line in section.splitlines():
        if line.startswith("    "):
            found[-1].append(line.strip())
        elif found[-1]:
            found.append([])
    return [block for block in found if block]


def block(command: str) -> list[str]:
    """The block that has this very line."""
    having = [block for block in blocks() if command in block]
    assert having, f"docs/operating.md tells nobody any more to type: {command}"
    return having[0]


def line(start: str) -> str:
    """The first line that begins so."""
    lines = [one for block in blocks() for one in block if one.startswith(start)]
    assert lines, f"docs/operating.md tells nobody any more to type: {start} …"
    return lines[0]


def typed(pool: Pool, lines: list[str], here: Mapping[str, object]) -> str:
    """Types lines into a shell; gives what they said.

    `here` has what the guide calls by another name: its placeholder → this house's own.
    """
    script = "\n".join(lines)
    for placeholder, own in here.items():
        script = script.replace(placeholder, str(own))
    # the environment is activated, as the guide has it
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return pool.command("bash", "-euc", script, PATH=path)
