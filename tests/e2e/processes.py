"""Who of a test's processes still lives: all bear a mark in their environment."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

MARKER = "EARWITNESS_TEST_RUN"
"""Environment variable that holds the mark."""
GONE_WITHIN_S = 60


def _living() -> dict[int, tuple[int, int]]:
    """Parent and session of every living process."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z":
                    found[int(folder.name)] = (int(stat[1]), int(stat[3]))
    return found


def family(mark: str) -> dict[int, str]:
    """Living processes that bear a mark, their descendants and their sessions' members, by name."""
    living, found = _living(), set()
    for pid in living:
        with contextlib.suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.add(pid)
    # vLLM's processes write their titles over their environment
    while more := {pid for pid, (parent, _) in living.items() if parent in found} - found:
        found |= more
    sessions = {living[pid][1] for pid in found}
    found |= {pid for pid, (_, session) in living.items() if session in sessions}
    names = {}
    for pid in found:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
            names[pid] = words.decode(errors="replace")[:200]
    return names


def nothing_is_left(mark: str, limit_s: float = GONE_WITHIN_S) -> None:
    """Fails when processes that bear a mark live on."""
    limit = time.monotonic() + limit_s
    while left := family(mark):
        assert time.monotonic() < limit, f"left behind: {left}"
        time.sleep(0.1)
