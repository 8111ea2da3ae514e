"""What looking up a shard's 20,000 keys costs as the cache grows.

    python -m tests.bench.cache_growth --outcomes 10000 1000000 10000000
    python -m tests.bench.cache_growth --s3

The cache is made up (random keys, answers of a sentence), its look-ups are the product's, each by a
cache opened anew, as a shard's process opens it. What is looked for:

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
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import s3fs

from earwitness.cache import outcome_cache
from earwitness.cache.tables import OUTCOME_COLUMNS
from earwitness.storage import Store
from tests.integration.workbench import CREDENTIALS, S3Server

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARD_ROWS = 20_000
REPEATS = 3


def make_cache(store: Store, outcomes: int, seed: int) -> list[NDArray[np.bytes_]]:
    """Fill a cache and merge its index; the keys of each segment."""
    draw = np.random.default_rng(seed)
    cache = outcome_cache(store)
    segments = []
    for shard, start in enumerate(range(0, outcomes, SHARD_ROWS)):
        rows = min(SHARD_ROWS, outcomes - start)
        keys = np.frombuffer(draw.bytes(32 * rows), dtype="V32")
        cache.write(f"2026-11-22T000000.000000+0000-b-1.shard-{shard:05d}", _rows(keys, draw))
        segments.append(keys)
    cache.merge()
    return segments


def _rows(keys: NDArray[np.void], draw: np.random.Generator) -> pa.Table:
    count = len(keys)
    words = np.array(["a", "dog", "barks", "twice", "in", "the", "rain", "far", "away", "music"])
    texts = [" ".join(line) for line in words[draw.integers(0, len(words), (count, 12))]]
    sounds = [[{"sha256": key.hex(), "duration_s": 3.0, "heard_s": 3.0}] for key in keys.tolist()]
    columns = {
        "key": pa.array(keys.tolist(), pa.binary(32)),
        "answer": pa.array(texts),
        "finish_reason": pa.array(["stop"] * count),
        "prompt_tokens": pa.array([90] * count, pa.int32()),
        "completion_tokens": pa.array([12] * count, pa.int32()),
        "clips": pa.array(sounds, OUTCOME_COLUMNS.field("clips").type),
        "max_tokens": pa.array([256] * count, pa.int32()),
    }
    schema = pa.schema([pa.field("key", pa.binary(32)), *OUTCOME_COLUMNS])
    nulls = {
        field.name: pa.nulls(count, field.type) for field in schema if field.name not in columns
    }
    return pa.table({name: {**columns, **nulls}[name] for name in schema.names}, schema=schema)


def wanted(segments: list[NDArray[np.bytes_]], seed: int) -> dict[str, tuple[list[bytes], str]]:
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


def measure(root: str, outcomes: int, seed: int) -> dict[str, tuple[float, float]]:
    """Median wall seconds of each way of looking, and the share found."""
    store = Store(root)
    segments = make_cache(store, outcomes, seed)
    measured = {}
    for way, (keys, near) in wanted(segments, seed + 1).items():
        took_s, found = [], 0
        for _ in range(REPEATS):
            started = time.perf_counter()
            found = len(outcome_cache(store).find(keys, near=near))
            took_s.append(time.perf_counter() - started)
        measured[way] = statistics.median(took_s), found / len(set(keys))
    return measured


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--s3", action="store_true", help="on an S3 endpoint instead of a folder")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-growth-") as folder:
        server = None
        if given.s3:
            buckets = S3Server(Path(folder) / "buckets", Path(folder) / "log")
            buckets.folder.mkdir()
            server = buckets.start()
            key, secret = CREDENTIALS
            os.environ |= {"AWS_ENDPOINT_URL": buckets.url, "AWS_DEFAULT_REGION": "us-east-1"}
            os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        try:
            _table(Path(folder), given.outcomes, given.seed, s3=given.s3)
        finally:
            if server:
                server.stop()


def _table(folder: Path, sizes: list[int], seed: int, *, s3: bool) -> None:
    print(f"{'outcomes':>12}  {'look-up':<10}{'seconds':>9}{'growth':>8}{'found':>8}")
    first: dict[str, float] = {}
    for outcomes in sizes:
        if s3:
            bucket = f"cache-{uuid.uuid4().hex[:8]}"
            s3fs.S3FileSystem().mkdir(bucket)
            root = f"s3://{bucket}"
        else:
            root = str(folder / str(outcomes))
        for way, (took_s, share) in measure(root, outcomes, seed).items():
            growth = took_s / first.setdefault(way, took_s)
            print(
                f"{outcomes:>12,}  {way:<10}{took_s:>9.2f}{growth:>8.1f}{share:>8.0%}", flush=True
            )


if __name__ == "__main__":
    main()
