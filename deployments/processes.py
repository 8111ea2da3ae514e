"""Processes of this machine, told by a variable in their environment."""

from __future__ import annotations

from pathlib import Path


def is_marked(pid: int, mark: str) -> bool:
    """True when a living process has a variable in its environment.

    Args:
        pid: The process's id.
        mark: `NAME=value`.
    """
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return mark.encode() in environment.split(b"\0")


def marked(mark: str) -> list[int]:
    """Living processes with a variable in their environment, this one and its children included.

    Args:
        mark: `NAME=value`.
    """
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if is_marked(pid, mark)]
