"""What is stored is found, wherever it lies; the newest word counts; a lost index loses nothing."""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earwitness.build.layout import Build
from earwitness.cache import ClipSighting, SegmentCache
from earwitness.cache.tables import (
    outcome_from_row,
    outcome_table,
    sighting_from_row,
    sighting_table,
    still_right,
    uri_key,
)
from earwitness.records import (
    Answer,
    ClipFacts,
    HeardClip,
    HeardSound,
    Outcome,
    Reason,
    Rejection,
    Stage,
)
from earwitness.storage import Store

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = pa.schema([pa.field("value", pa.string())])


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rows(values: dict[int, str]) -> pa.Table:
    listed = [{"key": key(number), "value": value} for number, value in values.items()]
    return pa.Table.from_pylist(listed, pa.schema([pa.field("key", pa.binary(32)), *COLUMNS]))


@pytest.fixture
def cache(tmp_path: Path) -> SegmentCache:
    return SegmentCache(Store(str(tmp_path)), COLUMNS)


def values(cache: SegmentCache, numbers: list[int], near: str = "") -> dict[int, str]:
    found = cache.find([key(number) for number in numbers], near)
    return {n: found[key(n)]["value"] for n in numbers if key(n) in found}


def test_a_segment_without_an_index_is_read_directly(cache: SegmentCache):
    cache.write("2026-a.shard-00000", rows({1: "one", 2: "two"}))
    assert values(cache, [1, 2, 3]) == {1: "one", 2: "two"}


def test_an_indexed_segment_is_found_through_the_index(cache: SegmentCache):
    cache.write("2026-a.shard-00000", rows({1: "one"}))
    assert cache.merge() == 1
    cache.write("2026-b.shard-00000", rows({2: "two"}))
    assert values(cache, [1, 2]) == {1: "one", 2: "two"}


def test_merging_again_does_nothing(cache: SegmentCache):
    cache.write("2026-a.shard-00000", rows({1: "one"}))
    cache.merge()
    assert cache.merge() == 0


@pytest.mark.parametrize("merged", [True, False])
def test_the_newest_segment_counts(cache: SegmentCache, merged):
    cache.write("2026-b.shard-00000", rows({1: "new"}))
    cache.write("2025-a.shard-00000", rows({1: "old"}))
    if merged:
        cache.merge()
    assert values(cache, [1]) == {1: "new"}


def test_a_near_segment_spares_the_index(cache: SegmentCache, tmp_path: Path):
    cache.write("2026-a.shard-00003", rows({1: "one"}))
    cache.merge()
    for index in tmp_path.glob("index-*.parquet"):
        index.write_bytes(b"unreadable")
    fresh = SegmentCache(Store(str(tmp_path)), COLUMNS)
    assert values(fresh, [1], near=".shard-00003") == {1: "one"}


def test_a_near_row_that_is_not_final_gives_way_to_a_newer_one(cache: SegmentCache):
    cache.write("2026-a.shard-00003", rows({1: "rejected"}))
    cache.write("2026-b.shard-00000", rows({1: "answered"}))
    found = cache.find([key(1)], ".shard-00003", final=lambda row: row["value"] != "rejected")
    assert found[key(1)]["value"] == "answered"


def test_keys_that_share_a_prefix_are_told_apart(cache: SegmentCache):
    one, other = b"\0" * 32, b"\0" * 31 + b"\1"
    table = pa.table({"key": pa.array([one, other], pa.binary(32)), "value": ["one", "other"]})
    cache.write("2026-a.shard-00000", table)
    cache.merge()
    third = b"\0" * 30 + b"\1\1"
    assert {k: row["value"] for k, row in cache.find([one, other, third]).items()} == {
        one: "one",
        other: "other",
    }


def test_nothing_to_keep_writes_nothing(cache: SegmentCache):
    cache.write("2026-a.shard-00000", rows({}))
    assert cache.segments() == []


def test_rewriting_a_shards_segment_is_idempotent(cache: SegmentCache):
    cache.write("2026-a.shard-00000", rows({1: "one"}))
    cache.write("2026-a.shard-00000", rows({1: "one"}))
    assert len(cache.segments()) == 1


def test_the_index_before_the_last_is_removed(cache: SegmentCache, tmp_path: Path):
    for number in range(4):
        cache.write(f"2026-{number}.shard-00000", rows({number: str(number)}))
        cache.merge()
    assert len(list(tmp_path.glob("index-*.parquet"))) == 2
    assert values(cache, [0, 1, 2, 3]) == {n: str(n) for n in range(4)}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 40), min_size=1), st.booleans()), max_size=5),
    st.sets(st.integers(0, 50)),
)
def test_any_history_of_writes_and_merges_finds_the_newest(tmp_path_factory, history, asked):
    cache = SegmentCache(Store(str(tmp_path_factory.mktemp("cache"))), COLUMNS)
    expected: dict[int, str] = {}
    for turn, (numbers, merge) in enumerate(history):
        written = {number: f"{turn}:{number}" for number in sorted(numbers)}
        cache.write(f"2026-{turn:02d}.shard-00000", rows(written))
        expected |= written
        if merge:
            cache.merge()
    assert values(cache, sorted(asked)) == {n: expected[n] for n in sorted(asked) if n in expected}


CLIPS = st.builds(
    HeardClip,
    st.just("a" * 64),
    st.floats(0, 1e6, allow_nan=False),
    st.floats(0, 1e6, allow_nan=False),
)
ANSWERS = st.builds(
    Answer,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["stop", "length"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)
REJECTIONS = st.builds(
    Rejection, st.sampled_from(Stage), st.sampled_from(Reason), st.text("abc ", max_size=9)
)
OUTCOMES = st.one_of(
    st.builds(
        Outcome,
        st.just("b" * 64),
        ANSWERS,
        st.none(),
        st.lists(CLIPS, max_size=3).map(tuple),
        st.integers(1, 10**6),
        st.none() | st.integers(1, 10**6),
    ),
    st.builds(Outcome, st.just("b" * 64), st.none(), REJECTIONS),
)


@given(OUTCOMES)
def test_outcomes_survive_their_table(outcome: Outcome):
    row = outcome_table([outcome]).to_pylist()[0]
    # equal sounds may be of other clips: an outcome is kept without them
    assert outcome_from_row(row["key"].hex(), row) == dataclasses.replace(outcome, clips=())


SECONDS = st.floats(0, 1e6, allow_nan=False)
SOUNDS = st.builds(
    HeardSound,
    st.integers(8_000, 48_000),
    st.none() | SECONDS,
    SECONDS,
    st.floats(0, 9),
    st.just("d" * 64),
)
FACTS = st.builds(
    ClipFacts,
    st.sampled_from(["wav", ""]),
    st.integers(1, 9),
    st.none() | SECONDS,
    SECONDS,
    st.lists(SOUNDS, max_size=2).map(tuple),
    st.none() | REJECTIONS,
)


@given(st.text(), st.none() | REJECTIONS, st.none() | FACTS)
def test_sightings_survive_their_table(
    uri: str, rejection: Rejection | None, facts: ClipFacts | None
):
    name = uri.encode("utf-8", "replace").decode()
    refused = None if facts else rejection
    seen = ClipSighting(name, "7:etag", "c" * 64, refused, facts)
    row = sighting_table([seen]).to_pylist()[0]
    assert row["key"] == uri_key(seen.uri)
    assert sighting_from_row(row) == seen


def answered(finish_reason: str, tokens: int, max_tokens: int) -> Outcome:
    return Outcome("k", Answer("text", finish_reason, 5, tokens), max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("outcome", "max_tokens", "right"),
    [
        (answered("stop", 20, 256), 256, True),
        (answered("stop", 20, 256), 512, True),
        (answered("stop", 20, 256), 20, True),
        (answered("stop", 20, 256), 19, False),
        (answered("length", 256, 256), 256, True),
        (answered("length", 256, 256), 512, False),
        (answered("length", 256, 256), 128, False),
    ],
)
def test_a_stored_answer_is_right_if_it_ended_itself_or_was_cut_just_there(
    outcome: Outcome, max_tokens: int, right
):
    assert still_right(outcome, max_tokens, None) is right


def test_a_context_overflow_is_asked_again_in_another_context():
    overflow = Rejection(Stage.GENERATE, Reason.CONTEXT_OVERFLOW, "too long")
    outcome = Outcome("k", None, overflow, max_tokens=256, max_model_len=4096)
    assert still_right(outcome, 256, 4096)
    assert not still_right(outcome, 256, 8192)
    assert not still_right(outcome, 128, 4096)


def test_other_rejections_stand_whatever_the_limits():
    silent = Outcome("k", None, Rejection(Stage.DECODE, Reason.SILENT, "silent"), max_tokens=256)
    assert still_right(silent, 512, None)


class CountingStore(Store):
    """A store that counts what is opened."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def open(self, path: str) -> BinaryIO:
        self.opened.append(path)
        return super().open(path)


def test_what_was_read_is_not_read_again_for_the_next_batch(tmp_path: Path):
    store = CountingStore(str(tmp_path))
    cache = SegmentCache(store, COLUMNS)
    for number in range(3):
        cache.write(f"2026-a.shard-{number:05d}", rows({number: "known"}))
    assert values(cache, [7, 8]) == values(cache, [9]) == {}
    assert len(store.opened) == 3
    cache.merge()
    store.opened.clear()
    assert values(cache, [10]) == values(cache, [11]) == {}
    assert [path for path in store.opened if path.startswith("segments/")] == []
    assert len(store.opened) == 1


def test_batches_that_ask_at_the_same_moment_read_the_index_once(tmp_path: Path):
    store = CountingStore(str(tmp_path))
    SegmentCache(store, COLUMNS).write("2026-a.shard-00000", rows({1: "one", 2: "two"}))
    SegmentCache(store, COLUMNS).merge()
    store.opened.clear()
    cache = SegmentCache(store, COLUMNS)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: values(cache, [number]), [1, 2, 3, 4] * 4))
    assert found == [{1: "one"}, {2: "two"}, {}, {}] * 4
    assert sum(path.startswith("index-") for path in store.opened) == 1


def test_a_segment_that_came_since_the_last_batch_is_found(cache: SegmentCache):
    assert values(cache, [1]) == {}
    cache.write("2026-a.shard-00001", rows({1: "one"}))
    assert values(cache, [1]) == {1: "one"}


def test_all_tasks_of_a_process_share_an_outputs_tables(tmp_path: Path):
    output = str(tmp_path / "out")
    first, second = Build(output, "b-1"), Build.at(f"{output}/builds/b-2")
    assert first.outcomes is second.outcomes
    assert first.sightings is second.sightings
    assert Build(str(tmp_path / "other"), "b-1").outcomes is not first.outcomes
