"""How much memory this process and its children hold, as the kernel counts it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Self

from earwitness.audio.pool import MEMORY_LIMIT_BYTES
from earwitness.engine.guardian import descendants
from tests.chaos.report import Held

WORKER_LIMIT_MIB = 512
"""Peak resident memory allowed to a decode worker; some 200 MiB of it are the libraries."""
PARENT_GROWTH_MIB = 64


class MemoryWatch:
    """The peak resident memory of this process and of each of its children, while it is open.

    Args:
        every_s: How often it is looked at; the peak of a child that lives shorter is missed.
    """

    def __init__(self, every_s: float = 0.05) -> None:
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.worker_mib = 0
        self._before_mib = self.parent_mib = memory_mib(os.getpid(), "VmRSS")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def worker_line(self, name: str = "") -> Held:
        """The largest child's peak, against what is allowed."""
        space = f"address space: {MEMORY_LIMIT_BYTES >> 30} GiB"
        told = f"peak {self.worker_mib} MiB of {WORKER_LIMIT_MIB} ({space})"
        fine = self.worker_mib <= WORKER_LIMIT_MIB
        return Held(f"{name}a worker's memory is bounded", 1, int(fine), told)

    def parent_line(self) -> Held:
        """How much this process grew, against what is allowed."""
        grown = self.parent_mib - self._before_mib
        told = f"grew {grown} MiB to {self.parent_mib}"
        return Held("the parent's memory is bounded", 1, int(grown <= PARENT_GROWTH_MIB), told)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.parent_mib = max(self.parent_mib, memory_mib(os.getpid(), "VmRSS"))
            # the kernel keeps each process's peak
            peaks = [memory_mib(pid, "VmHWM") for pid in descendants(os.getpid())]
            self.worker_mib = max([self.worker_mib, *peaks])


def memory_mib(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) >> 10 for line in lines if line.startswith(field)), 0)
