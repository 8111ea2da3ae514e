"""Which builds gc lets go, and which segments; what a reader makes of those that are gone."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from earwitness.build.layout import Build
from earwitness.build.retention import SeenBuild, choose_old
from earwitness.cache import SegmentCache
from earwitness.cache.index import joined, prefixes, segment_keys
from earwitness.cache.liveness import Liveness
from earwitness.storage import Entry, Store

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400.0
LONG_AGO_S = 1_600_000_000
COLUMNS = pa.schema([pa.field("value", pa.string()), pa.field("max_tokens", pa.int32())])


def seen(day: int, *files: str, held: bool = False, age_s: float = 2 * DAY_S) -> SeenBuild:
    """A build as a listing would show it."""
    entries = {path: Entry(10, time.time() - age_s) for path in files}
    planned_at = f"2026-11-{day:02d}T00:00:00+00:00" if "plan.json" in files else ""
    return SeenBuild(Build("/nowhere", str(day)), entries, planned_at, held=held)


def chosen(*builds: SeenBuild, pointed: int = 0, keep: int = 2) -> list[int]:
    ordered = sorted(builds, key=lambda one: one.planned_at, reverse=True)
    choose_old(ordered, str(pointed), keep, DAY_S)
    return sorted(int(one.build.id) for one in builds if one.why)


WHOLE = ("plan.json", "build.json")


def test_the_newest_published_builds_stay():
    assert chosen(*(seen(day, *WHOLE) for day in range(1, 6))) == [1, 2, 3]


def test_the_build_pointed_at_stays_beside_them():
    assert chosen(*(seen(day, *WHOLE) for day in range(1, 6)), pointed=2) == [1, 3]


@pytest.mark.parametrize("files", [WHOLE, ("plan.json",), ("plan/x",), ("gc.json",)])
def test_a_build_that_is_held_stays(files: tuple[str, ...]):
    newer = [seen(day, *WHOLE) for day in (8, 9)]
    assert chosen(seen(1, *files), *newer) == [1]
    assert chosen(seen(1, *files, held=True), *newer) == []


def test_an_unpublished_build_goes_once_it_is_overtaken_and_left_alone():
    assert chosen(
        seen(1, "plan.json"), seen(2, "plan.json", age_s=60), seen(3, *WHOLE), seen(4, "plan.json")
    ) == [1]


@pytest.mark.parametrize(("age_s", "goes"), [(60, []), (2 * DAY_S, [1]), (-float("inf"), [])])
def test_a_folder_without_a_plan_goes_when_it_is_surely_old(age_s: float, goes: list[int]):
    assert chosen(seen(1, "plan/shard-00000.jsonl", age_s=age_s), seen(2, *WHOLE)) == goes


def test_what_a_killed_gc_left_goes_at_once():
    assert chosen(seen(1, "gc.json", "build.json", age_s=0), seen(2, *WHOLE)) == [1]


def test_an_empty_folder_goes_and_one_just_made_stays(tmp_path: Path):
    old = SeenBuild(Build(str(tmp_path), "1"), {})
    new = SeenBuild(Build(str(tmp_path), "2"), {})
    for one in (old, new):
        (tmp_path / "builds" / one.build.id).mkdir(parents=True)
    os.utime(tmp_path / "builds/1", (LONG_AGO_S, LONG_AGO_S))
    assert chosen(old, new) == [1]


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def fill(cache: SegmentCache, name: str, *numbers: int, max_tokens: int = 9) -> None:
    rows = [{"key": key(n), "value": f"{name} {n}", "max_tokens": max_tokens} for n in numbers]
    cache.write(name, pa.Table.from_pylist(rows, cache.schema))


@pytest.fixture
def cache(tmp_path: Path) -> SegmentCache:
    return SegmentCache(Store(str(tmp_path)), COLUMNS)


def unneeded(cache: SegmentCache, *used: int) -> list[str]:
    live = Liveness(cache)
    live.mark(prefixes([key(number) for number in used]))
    return [name[0] for name in live.unneeded(cache.segments())]


def test_a_segment_is_needed_while_it_is_the_newest_with_a_key_in_use(cache: SegmentCache):
    fill(cache, "a", 1, 2)
    fill(cache, "b", 2, 3)
    cache.merge()
    fill(cache, "c", 2)
    assert unneeded(cache, 1, 3, 77) == ["c"]
    assert unneeded(cache, 1, 2) == ["b"]
    assert unneeded(cache, 2) == ["a", "b"]
    assert unneeded(cache) == ["a", "b", "c"]


def test_an_older_outcome_stays_beside_a_newer_one_under_another_limit(cache: SegmentCache):
    fill(cache, "a", 1)
    fill(cache, "b", 1)
    fill(cache, "c", 1, max_tokens=2)
    assert unneeded(cache, 1) == []
    fill(cache, "d", 1)
    assert unneeded(cache, 1) == ["a", "b"]


def test_a_reader_takes_a_removed_segment_for_a_miss(cache: SegmentCache, tmp_path: Path):
    fill(cache, "a", 1, 2)
    fill(cache, "b", 2)
    cache.merge()
    reader = SegmentCache(Store(str(tmp_path)), COLUMNS)
    assert len(reader.find([key(1), key(2)])) == 2
    pointer = (tmp_path / "index.json").read_bytes()
    cache.drop([name for name in cache.segments() if name.startswith("b")])
    # as a merge that began before would do it
    (tmp_path / "index.json").write_bytes(pointer)
    for one in (reader, SegmentCache(Store(str(tmp_path)), COLUMNS)):
        assert [row["value"] for row in one.find([key(1), key(2)]).values()] == ["a 1", "a 2"]
    cache.merge()
    assert b"b-" not in (tmp_path / "index.json").read_bytes()


def test_an_index_that_is_gone_costs_time_alone(cache: SegmentCache, tmp_path: Path):
    fill(cache, "a", 1)
    cache.merge()
    for index in tmp_path.glob("index-*.parquet"):
        index.unlink()
    fresh = SegmentCache(Store(str(tmp_path)), COLUMNS)
    assert fresh.find([key(1)])[key(1)]["value"] == "a 1"


def test_index_files_nothing_names_go_when_they_are_old(cache: SegmentCache, tmp_path: Path):
    fill(cache, "a", 1)
    for stray in ("index-old.parquet", "index-new.parquet"):
        (tmp_path / stray).write_bytes(b"")
    os.utime(tmp_path / "index-old.parquet", (LONG_AGO_S, LONG_AGO_S))
    cache.drop(cache.segments())
    cache.sweep()
    assert not (tmp_path / "index-old.parquet").exists()
    assert (tmp_path / "index-new.parquet").exists()
    assert cache.find([key(1)]) == {}


def test_keys_of_a_segment_leave_an_index_without_a_trace():
    held = {"a": [1, 2], "b": [2, 4], "c": [3]}
    parts = [segment_keys(name, [bytes([n]) * 32 for n in keys]) for name, keys in held.items()]
    left = joined(parts).without({"b"})
    assert left.segments == ["a", "c"]
    wanted = np.array([int.from_bytes(bytes([n]) * 8, "big") for n in (1, 2, 3, 4)], np.uint64)
    assert left.locate(wanted) == [(0, "a", 0), (1, "a", 1), (2, "c", 0)]
