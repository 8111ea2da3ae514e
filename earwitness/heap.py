"""Keeping memory flat over a long build."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8  # from glibc's malloc.h
_ARENAS = 2


def bound_heap() -> None:
    """Keep freed memory from scattering; call it before threads are started.

    glibc gives every thread a heap of its own (up to eight a core), and each keeps its high-water
    mark: with some hundred task threads a build seems to grow for minutes. Arrow's own pool keeps
    more. Two heaps, shared, cost no time that could be measured.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if "pyarrow" in sys.modules:  # too late for the variable
        import pyarrow as pa

        pa.set_memory_pool(pa.system_memory_pool())
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
    except (OSError, AttributeError):
        return  # another C library, with other habits
