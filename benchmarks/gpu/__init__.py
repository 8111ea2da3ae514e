"""Qwen2-Audio's real shape on a GPU, with dummy weights: `python -m benchmarks.gpu --help`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.table import Row


def measure() -> list[Row]:
    """See `benchmarks.gpu.comparison`, which loads what takes seconds to load."""
    from benchmarks.gpu.comparison import measure as compare_and_tell

    return compare_and_tell()
