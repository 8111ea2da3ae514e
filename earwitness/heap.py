"""Keeping memory flat over a long build, and its upkeep cheap."""

from __future__ import annotations

import ctypes
import gc
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


def settle_heap() -> None:
    """Have the garbage collector leave alone what is there already; call it when work begins.

    The modules of a flow engine stay for good. Looking through them again and again cost a tenth of
    its process's CPU, in pauses of 100 ms during which no answer was read and no question sent.
    """
    gc.collect()
    gc.freeze()


def trim_heap() -> None:
    """Give the system back what was freed; some milliseconds.

    What one stage freed lies scattered between what lives on, and the next stage, with objects of
    other sizes, takes new memory beside it: peaks would add up over a shard.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library, with other habits
