"""What looking up a shard's 20,000 keys costs as the cache grows.

    python -m tests.bench.cache_growth --outcomes 10000 1000000 10000000

The cache is made up (random keys, answers of a sentence) and lies in a folder that is looked into
directly, and once more through an S3 endpoint that serves it. Look-ups are the product's, each by a
cache opened anew, as a shard's process opens it:

    again      what the last build's same shard found out: a nightly build
    shifted    the same rows after lines were added before them: two shards' halves
    new        what nobody ever asked
    shuffled   as many from all over the cache: the manifest was shuffled
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from earwitness.cache import outcome_cache
from earwitness.cache.tables import OUTCOME_COLUMNS
from earwitness.storage import Store
from tests.bench.table import Row, print_rows
from tests.integration.workbench import S3Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SCRIPT = "python -m tests.bench.cache_growth"
SIZES = (10_000, 1_000_000, 10_000_000)
SHARD_ROWS = 20_000
GOAL_GROWTH = 3.0
REPEATS = {"local": 3, "S3": 2}

LIMITS = {
    "shuffled": "keys in random order: every segment is opened and nearly every row group is read",
}


def measure(sizes: Sequence[int] = SIZES, seed: int = 1) -> list[Row]:
    """Look up the same ways in caches of several sizes, locally and on S3.

    Args:
        sizes: Outcomes in the cache, smallest first; growth is from the first to the last.
        seed: Of the keys.

    Returns:
        A row for each place and way of looking.
    """
    took_s: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="cache-growth-") as name:
        folder = Path(name)
        buckets = S3Server(folder / "buckets", folder / "log")
        caches = {}
        for outcomes in sizes:
            store = Store(str(buckets.folder / f"cache-{outcomes}"))
            caches[outcomes] = make_cache(store, outcomes, seed)
        server = buckets.start()  # only now: it lists a folder once
        os.environ |= buckets.environment
        try:
            for outcomes, segments in caches.items():
                local = Store(str(buckets.folder / f"cache-{outcomes}"))
                away = Store(f"s3://cache-{outcomes}")
                for way, (keys, near) in wanted(segments, seed + 1).items():
                    expected = 0 if way == "new" else min(len(keys), outcomes)
                    for place, store in (("local", local), ("S3", away)):
                        found_s, found = _look_up(store, keys, near, REPEATS[place])
                        took_s.setdefault((place, way), []).append(found_s)
                        assert found == expected, (place, way, found)
        finally:
            server.stop()
    return [_row(place, way, sizes, seconds) for (place, way), seconds in took_s.items()]


def _row(place: str, way: str, sizes: Sequence[int], seconds: list[float]) -> Row:
    growth = seconds[-1] / seconds[0]
    note = f"{', '.join(f'{size:,}' for size in sizes)} outcomes"
    return Row(
        f"cache look-up of {SHARD_ROWS:,} records, {place}, {way}",
        f"{', '.join(f'{one:.2f}' for one in seconds)} s: {growth:.1f} times",
        f"≤ {GOAL_GROWTH:g} times",
        growth <= GOAL_GROWTH,
        SCRIPT,
        f"{note}; {LIMITS[way]}" if way in LIMITS else note,
    )


def _look_up(store: Store, keys: list[bytes], near: str, repeats: int) -> tuple[float, int]:
    """Median seconds, and how many keys were found."""
    took_s, found = [], 0
    for _ in range(repeats):
        cache = outcome_cache(store)
        started = time.perf_counter()
        found = len(cache.find(keys, near=near))
        took_s.append(time.perf_counter() - started)
    return statistics.median(took_s), found


def make_cache(store: Store, outcomes: int, seed: int) -> list[NDArray[np.void]]:
    """Fill a cache and merge its index; the keys of each segment."""
    draw = np.random.default_rng(seed)
    cache = outcome_cache(store)
    told = _told(draw)
    segments = []
    for shard, start in enumerate(range(0, outcomes, SHARD_ROWS)):
        rows = min(SHARD_ROWS, outcomes - start)
        data = draw.bytes(32 * rows)
        keys: pa.Array = pa.Array.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(data)])
        name = f"2026-11-22T000000.000000+0000-b-1.shard-{shard:05d}"
        cache.write(name, told.slice(0, rows).add_column(0, cache.schema.field("key"), keys))
        segments.append(np.frombuffer(data, dtype="V32"))
    cache.merge()
    return segments


def _told(draw: np.random.Generator) -> pa.Table:
    """A shard's outcomes without their keys, the same in all segments."""
    words = np.array(["a", "dog", "barks", "twice", "in", "the", "rain", "far", "away", "music"])
    texts = [" ".join(line) for line in words[draw.integers(0, len(words), (SHARD_ROWS, 12))]]
    sounds = [
        [{"sha256": draw.bytes(32).hex(), "duration_s": 3.0, "heard_s": 3.0}]
        for _ in range(SHARD_ROWS)
    ]
    columns = {
        "answer": pa.array(texts),
        "finish_reason": pa.array(["stop"] * SHARD_ROWS),
        "prompt_tokens": pa.array([90] * SHARD_ROWS, pa.int32()),
        "completion_tokens": pa.array([12] * SHARD_ROWS, pa.int32()),
        "clips": pa.array(sounds, OUTCOME_COLUMNS.field("clips").type),
        "max_tokens": pa.array([256] * SHARD_ROWS, pa.int32()),
    }
    nulls = {field.name: pa.nulls(SHARD_ROWS, field.type) for field in OUTCOME_COLUMNS}
    return pa.table(nulls | columns, schema=OUTCOME_COLUMNS)


def wanted(segments: list[NDArray[np.void]], seed: int) -> dict[str, tuple[list[bytes], str]]:
    """The keys of each way of looking, with the part of a segment's name to look at first."""
    draw = np.random.default_rng(seed)
    last = len(segments) - 1
    both = np.concatenate([segments[last - 1], segments[last]])
    half = len(segments[last]) // 2
    everything = np.concatenate(segments)
    chosen = draw.choice(len(everything), min(SHARD_ROWS, len(everything)), replace=False)
    near = f".shard-{last:05d}"
    unknown = np.frombuffer(draw.bytes(32 * SHARD_ROWS), dtype="V32")
    return {
        "again": (segments[last].tolist(), near),
        "shifted": (both[half : half + SHARD_ROWS].tolist(), near),
        "new": (unknown.tolist(), near),
        "shuffled": (everything[chosen].tolist(), near),
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print_rows(measure(given.outcomes, given.seed))


if __name__ == "__main__":
    main()
