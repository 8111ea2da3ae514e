"""What the kernel says of a process and of all that it started."""

from __future__ import annotations

import os
from pathlib import Path

from earwitness.engine.guardian import descendants

_TICKS = os.sysconf("SC_CLK_TCK")


def workers_kib(pid: int) -> int:
    """What all processes below one hold together.

    One that was forked and has not yet become another program does not count: it is its parent
    once more, for a moment.
    """
    own = _command(pid)
    return sum(own_kib(child) for child in descendants(pid) if _command(child) != own)


def own_kib(pid: int) -> int:
    """A process's own share of its memory (forked workers share most of it); 0 once it is gone.

    Without libraries: whose share they are changes with whatever else runs on the machine.
    """
    return _kib(f"/proc/{pid}/smaps_rollup", "Pss_Anon:")


def peak_kib(pid: int) -> int:
    """The most that was ever resident of a process; 0 once it is gone."""
    return _kib(f"/proc/{pid}/status", "VmHWM:")


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, of the children it waited for, and of all that live below it."""
    return sum(map(_one_cpu_s, {pid, *descendants(pid)}))


def _one_cpu_s(pid: int) -> float:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # user and system time, its own and its waited-for children's
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICKS


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _kib(path: str, name: str) -> int:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
