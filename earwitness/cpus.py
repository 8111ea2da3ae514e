"""How many CPUs this process may use.

The machine's count says little: a process may be held to some CPUs (affinity), a container to a
share of their time (a cgroup's quota), and a flow run to its part of what its worker has.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

CPUS_VARIABLE = "EARWITNESS_CPUS"
"""Environment variable: how many CPUs a process may use. A worker divides its own this way."""

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_share() -> int:
    """CPUs that this process may use, no more than its worker lets it.

    Raises:
        SettingsError: `CPUS_VARIABLE` holds no number of CPUs.
    """
    text = os.environ.get(CPUS_VARIABLE)
    if not text:
        return usable_cpus()
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"{CPUS_VARIABLE} has to be a number of CPUs, 1 or more, not {text!r}")
    return min(int(text), usable_cpus())


def usable_cpus(
    *, affinity: int | None = None, proc: Path = _PROC, cgroups: Path = _CGROUPS
) -> int:
    """CPUs of this process's affinity, no more than the quotas of its cgroups allow.

    Args:
        affinity: CPUs it may run on. Default: as the system says.
        proc: Where `/proc` is.
        cgroups: Where cgroups are mounted.

    Returns:
        At least 1; part of a CPU counts as one.
    """
    cpus = affinity or len(os.sched_getaffinity(0))
    for quota_us, period_us in _quotas(proc, cgroups):
        cpus = min(cpus, max(1, -(-quota_us // period_us)))
    return cpus


def _quotas(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Quota and period of every cgroup that this process is in, as far as they have one."""
    for folder in _folders(proc, cgroups):
        with suppress(OSError, ValueError):  # not there, or "max": no quota
            quota, period = (folder / "cpu.max").read_text().split()
            yield int(quota), int(period)
        with suppress(OSError, ValueError):
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            period_us = int((folder / "cpu.cfs_period_us").read_text())
            if quota_us > 0:
                yield quota_us, period_us


def _folders(proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's cgroups and of those around them."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # without controllers: version 2, which may be mounted beside version 1
        mounts = (controllers, "cpu") if controllers else (".", "unified")
        inner = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            # in a container the path may be the host's: then only the root is there
            for name in (inner, *inner.parents):
                yield cgroups / mount / name
