"""Qwen2-Audio's real shape on a GPU, with dummy weights: `python -m tests.bench.gpu --help`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.table import Row


def measure() -> list[Row]:
    """See `tests.bench.gpu.comparison`, which loads what takes seconds to load."""
    from tests.bench.gpu.comparison import measure as compare_and_tell

    return compare_and_tell()
