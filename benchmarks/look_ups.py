"""What a build reuses: how it is found over ten nights, and what looking it up costs.

    python -m benchmarks.look_ups --outcomes 10000 1000000 10000000

**Nights.** Ten nights of a build of 20,000 records in shards of 5,000, of which one per cent change
a night: asked otherwise, added in front, or added behind. No engine, no clip: outcomes are made up;
plans, look-ups, shards and publishing are the product's. The figure is the share of a night's keys
that the base's own shard or its neighbours hold; what is new is in nobody's.

**Size.** A published build that is made up (random keys, answers of a sentence) lies in a folder
that is looked into directly, and once more through an S3 endpoint that serves it. Each look-up is
by a reader opened anew, as a shard's process opens it, of 20,000 keys:

    again      what the base's same shard holds: a night on which nothing changed
    shifted    the same rows after lines were added before them: two shards' halves
    new        what nobody ever asked
    shuffled   as many from all over the build: the manifest was shuffled
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from benchmarks.table import Row, print_rows
from earwitness.builds.batch import Decided, RowState, write_resolved
from earwitness.builds.layout import Build
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.publish import publish_build
from earwitness.builds.resolve import read_shard
from earwitness.builds.stages import recall_rows
from earwitness.cache import Lookup, StoredTable
from earwitness.cache.keys import write_keys
from earwitness.cache.tables import OUTCOME_SCHEMA
from earwitness.cache.writing import ROW_GROUP_ROWS, parquet_bytes
from earwitness.identity import ModelIdentity, cache_key
from earwitness.records import Answer, Outcome
from earwitness.settings import BuildSettings, LayoutSettings
from earwitness.storage import Store
from tests.integration.workbench import S3Server, record, write_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SCRIPT = "python -m benchmarks.look_ups"
SIZES = (10_000, 1_000_000, 10_000_000)
SHARD_ROWS = 20_000
GOAL_GROWTH = 3.0
REPEATS = {"local": 3, "S3": 2}
NIGHTS, NIGHT_ROWS, NIGHT_SHARD_ROWS, CHANGED = 10, 20_000, 5_000, 0.01
GOAL_NEAR = 0.98
LIMITS = {"shuffled": "keys in random order: every file is opened and nearly every row is read"}


def measure(sizes: Sequence[int] = SIZES, seed: int = 1) -> list[Row]:
    """Ten nights of each change, then look-ups in builds of several sizes.

    Args:
        sizes: Outcomes of the build, smallest first; growth is from the first to the last.
        seed: Of the keys.
    """
    nights = [_nights(way) for way in ("asked otherwise", "added in front", "added behind")]
    return [*nights, *_sizes(sizes, seed)]


def _nights(way: str) -> Row:
    """One row: the smallest share found near over the nights, and what the outcomes take."""
    changed = round(CHANGED * NIGHT_ROWS)
    with tempfile.TemporaryDirectory(prefix="nights-") as name:
        folder = Path(name)
        asked = [(f"{row}.wav", "What is it?") for row in range(NIGHT_ROWS)]
        shares = []
        base = _night(folder, 0, asked)
        for night in range(1, NIGHTS + 1):
            new = [(f"{night}-{row}.wav", "What is it?") for row in range(changed)]
            if way == "added in front":
                asked = [*new, *asked]
            elif way == "added behind":
                asked += new
            else:
                for row in range(night, len(asked), round(1 / CHANGED)):
                    asked[row] = (asked[row][0], f"What is it on day {night}?")
            build = _night(folder, night, asked)
            shares.append(_share_near(base, build))
            base = build
        files = base.facts()["files"]
        outcomes = sum(file["bytes"] for file in files if file["path"].startswith("outcomes/"))
        keys = sum(base.store.sizes("keys").values())
    return Row(
        f"ten nights, 1 % of {NIGHT_ROWS:,} records {way}: share found near",
        f"{min(shares):.1%}",
        f"≥ {GOAL_NEAR:.0%}",
        min(shares) >= GOAL_NEAR,
        SCRIPT,
        f"the last night: {shares[-1]:.1%}; its outcomes take {outcomes / len(asked):.0f} bytes "
        f"per record, their keys and those of the clips {keys / len(asked):.0f}",
    )


def _night(folder: Path, night: int, asked: list[tuple[str, str]]) -> Build:
    records = [record(name, text) for name, text in asked]
    manifest = write_manifest(folder / "manifest.jsonl", records)
    layout = LayoutSettings(shard_rows=NIGHT_SHARD_ROWS)
    settings = BuildSettings(manifest=str(manifest), output=str(folder / "out"), layout=layout)
    build = Build(settings.output, f"out-202611{night + 1:02d}T000000Z-aaaaaa")
    started = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=night)
    model = ModelIdentity("declared", "stand-in", "")
    plan = plan_build(build, resolve_settings(settings), model, started)
    for shard in range(len(plan.shards)):
        rows = [
            RowState(row.row, [], [], cache_key(row.clips, row.messages, plan.question_digest))
            for row in read_shard(build, shard)
        ]
        recall_rows(build, rows, shard)
        write_resolved(build, shard, [Decided(row.row, _outcome(row), row.reused) for row in rows])
        persist_shard(build, shard)
    publish_build(build)
    return build


def _outcome(row: RowState) -> Outcome:
    said = Answer("a dog barks twice in the rain far away", "stop", 90, 12)
    return row.outcome or Outcome(row.cache_key, said, max_tokens=256)


def _share_near(base: Build, build: Build) -> float:
    table, near, total = StoredTable(base.store, "outcomes"), 0, 0
    for shard in range(len(build.plan.shards)):
        question = build.plan.question_digest
        planned = read_shard(build, shard)
        keys = {bytes.fromhex(cache_key(row.clips, row.messages, question)) for row in planned}
        near += len({row["key"] for row in table.near(list(keys), shard)})
        total += len(keys)
    return near / total


def _sizes(sizes: Sequence[int], seed: int) -> list[Row]:
    took_s: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="look-ups-") as name:
        folder = Path(name)
        buckets = S3Server(folder / "buckets", folder / "log")
        stored = {}
        for outcomes in sizes:
            stored[outcomes] = make_build(
                Store(f"{buckets.folder}/build-{outcomes}"), outcomes, seed
            )
        server = buckets.start()  # only now: it lists a folder once
        os.environ |= buckets.environment
        try:
            for outcomes, shards in stored.items():
                places = {
                    "local": Store(f"{buckets.folder}/build-{outcomes}"),
                    "S3": Store(f"s3://build-{outcomes}"),
                }
                for way, keys in wanted(shards, seed + 1).items():
                    expected = 0 if way == "new" else min(len(keys), outcomes)
                    for place, store in places.items():
                        found_s, found = _look_up(store, keys, len(shards) - 1, REPEATS[place])
                        took_s.setdefault((place, way), []).append(found_s)
                        assert found == expected, (place, way, found)
        finally:
            server.stop()
    return [_row(place, way, sizes, seconds) for (place, way), seconds in took_s.items()]


def _row(place: str, way: str, sizes: Sequence[int], seconds: list[float]) -> Row:
    growth = seconds[-1] / seconds[0]
    note = f"{', '.join(f'{size:,}' for size in sizes)} outcomes"
    return Row(
        f"look-up of {SHARD_ROWS:,} records, {place}, {way}",
        f"{', '.join(f'{one:.2f}' for one in seconds)} s: {growth:.1f} times",
        f"≤ {GOAL_GROWTH:g} times",
        growth <= GOAL_GROWTH,
        SCRIPT,
        f"{note}; {LIMITS[way]}" if way in LIMITS else note,
    )


def _look_up(store: Store, keys: list[bytes], shard: int, repeats: int) -> tuple[float, int]:
    """Median seconds, and how many keys were found."""
    took_s, found = [], 0
    for _ in range(repeats):
        table = StoredTable(store, "outcomes")
        started = time.perf_counter()
        found = len(Lookup(table, [table]).find(keys, shard))
        took_s.append(time.perf_counter() - started)
    return statistics.median(took_s), found


def make_build(store: Store, outcomes: int, seed: int) -> list[NDArray[np.void]]:
    """Write a build's outcomes and their keys; the keys of each shard."""
    draw = np.random.default_rng(seed)
    told = _told(draw)
    shards, paths = [], []
    for shard, start in enumerate(range(0, outcomes, SHARD_ROWS)):
        rows = min(SHARD_ROWS, outcomes - start)
        data = draw.bytes(32 * rows)
        keys: pa.Array = pa.Array.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(data)])
        table = told.slice(0, rows).add_column(0, OUTCOME_SCHEMA.field("key"), keys)
        paths.append(f"outcomes/shard-{shard:05d}-00000000.parquet")
        store.write_bytes(paths[-1], parquet_bytes(table, ROW_GROUP_ROWS))
        shards.append(np.frombuffer(data, dtype="V32"))
    write_keys(store, "outcomes", paths)
    return shards


def _told(draw: np.random.Generator) -> pa.Table:
    """A shard's outcomes without their keys, the same in all shards."""
    words = np.array(["a", "dog", "barks", "twice", "in", "the", "rain", "far", "away", "music"])
    texts = [" ".join(line) for line in words[draw.integers(0, len(words), (SHARD_ROWS, 12))]]
    columns = {
        "answer": pa.array(texts),
        "finish_reason": pa.array(["stop"] * SHARD_ROWS),
        "prompt_tokens": pa.array([90] * SHARD_ROWS, pa.int32()),
        "completion_tokens": pa.array([12] * SHARD_ROWS, pa.int32()),
        "max_tokens": pa.array([256] * SHARD_ROWS, pa.int32()),
    }
    fields = [field for field in OUTCOME_SCHEMA if field.name != "key"]
    nulls = {field.name: pa.nulls(SHARD_ROWS, field.type) for field in fields}
    return pa.table(nulls | columns, schema=pa.schema(fields))


def wanted(shards: list[NDArray[np.void]], seed: int) -> dict[str, list[bytes]]:
    """The keys of each way of looking, as the last shard asks for them."""
    draw = np.random.default_rng(seed)
    last = len(shards) - 1
    both = np.concatenate([shards[last - 1], shards[last]])
    half = len(shards[last]) // 2
    everything = np.concatenate(shards)
    chosen = draw.choice(len(everything), min(SHARD_ROWS, len(everything)), replace=False)
    unknown = np.frombuffer(draw.bytes(32 * SHARD_ROWS), dtype="V32")
    return {
        "again": shards[last].tolist(),
        "shifted": both[half : half + SHARD_ROWS].tolist(),
        "new": unknown.tolist(),
        "shuffled": everything[chosen].tolist(),
    }


def main() -> None:
    """Read the command line and measure."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--outcomes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print_rows(measure(given.outcomes, given.seed))


if __name__ == "__main__":
    main()
