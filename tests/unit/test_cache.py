"""What kept builds hold is found by its key; a file or an index that is lost loses nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earwitness.cache import ClipRecord, Lookup, StoredTable
from earwitness.cache.keys import StoredKeys, write_keys
from earwitness.cache.tables import (
    clip_from_row,
    clip_table,
    outcome_from_row,
    outcome_table,
    still_right,
    uri_key,
)
from earwitness.cache.writing import ROW_GROUP_ROWS, parquet_bytes
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
    from collections.abc import Iterable
    from pathlib import Path

COLUMNS = pa.schema([pa.field("key", pa.binary(32)), pa.field("value", pa.string())])


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def rows(values: dict[int, str]) -> pa.Table:
    listed = [{"key": key(number), "value": value} for number, value in values.items()]
    return pa.Table.from_pylist(listed, COLUMNS)


def put(store: Store, shard: int, table: pa.Table) -> str:
    path = f"outcomes/shard-{shard:05d}-{shard:08x}.parquet"
    store.write_bytes(path, parquet_bytes(table, ROW_GROUP_ROWS))
    return path


def values(table: StoredTable | Lookup, numbers: Iterable[int], *shard: int) -> dict[int, str]:
    wanted = {key(number): number for number in numbers}
    found = table.find(list(wanted), *shard)
    listed = found.values() if isinstance(found, dict) else found
    return {wanted[row["key"]]: row["value"] for row in listed}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


PARTS = st.lists(st.sets(st.integers(0, 300), max_size=60), min_size=1, max_size=5)


@pytest.mark.parametrize("sorted_keys", [True, False])
@settings(max_examples=25, deadline=None)
@given(parts=PARTS, asked=st.sets(st.integers(0, 400)))
def test_every_key_is_found_in_whichever_shard_it_lies(
    tmp_path_factory: pytest.TempPathFactory, parts: list[set[int]], asked: set[int], sorted_keys
):
    store = Store(str(tmp_path_factory.mktemp("build")))
    expected: dict[int, str] = {}
    paths = []
    for shard, numbers in enumerate(parts):
        new = {number: f"{shard}:{number}" for number in numbers if number not in expected}
        expected |= new
        paths.append(put(store, shard, rows(new)))
    if sorted_keys:
        write_keys(store, "outcomes", paths)
    found = values(StoredTable(store, "outcomes"), asked)
    assert found == {number: expected[number] for number in asked if number in expected}


def test_keys_come_in_parts_that_bound_memory(store: Store):
    paths = [put(store, n, rows({10 * n: "a", 10 * n + 1: "b"})) for n in range(5)]
    write_keys(store, "outcomes", paths, part_keys=3)
    assert len([path for path in store.sizes("keys") if path.endswith("-bloom.parquet")]) == 3
    found = values(StoredTable(store, "outcomes"), range(50))
    assert sorted(found) == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]


def test_a_filter_rules_out_nearly_all_unknown_keys(store: Store):
    write_keys(store, "outcomes", [put(store, 0, rows(dict.fromkeys(range(4000), "")))])
    opened: list[str] = []
    counting = CountingStore(store.root, opened)
    table = StoredTable(counting, "outcomes")
    unknown = [key(number) for number in range(10_000, 20_000)]
    places = list(StoredKeys(counting, "outcomes").locate(unknown))
    assert places == []
    passed = StoredKeys(counting, "outcomes")._passes(
        "keys/outcomes-00000", np.frombuffer(b"".join(unknown), ">u8").reshape(-1, 4)
    )
    assert 0 < passed.sum() < 100  # 0.24 % are expected
    assert values(table, range(10)) == dict.fromkeys(range(10), "")


def test_keys_that_share_a_prefix_are_told_apart(store: Store):
    one, other, third = b"\0" * 32, b"\0" * 31 + b"\1", b"\0" * 30 + b"\1\1"
    write_keys(
        store,
        "outcomes",
        [
            put(
                store,
                0,
                pa.table({"key": pa.array([one, other], pa.binary(32)), "value": ["one", "other"]}),
            )
        ],
    )
    found = StoredTable(store, "outcomes").find([one, other, third])
    assert {row["key"]: row["value"] for row in found} == {one: "one", other: "other"}


@pytest.mark.parametrize("gone", ["keys", "outcomes/shard-00001-00000001.parquet"])
def test_what_is_gone_loses_only_itself(store: Store, gone: str):
    write_keys(store, "outcomes", [put(store, n, rows({n: str(n)})) for n in range(3)])
    store.delete_many([path for path in store.sizes() if path.startswith(gone)])
    expected = {0: "0", 1: "1", 2: "2"} if gone == "keys" else {0: "0", 2: "2"}
    assert values(StoredTable(store, "outcomes"), range(4)) == expected


class CountingStore(Store):
    """A store that notes what is opened and read."""

    def __init__(self, root: str, opened: list[str]) -> None:
        super().__init__(root)
        self.opened = opened

    def open(self, path: str) -> BinaryIO:
        self.opened.append(path)
        return super().open(path)

    def read_bytes(self, path: str) -> bytes:
        self.opened.append(path)
        return super().read_bytes(path)


def test_rows_of_the_same_shard_and_its_neighbours_are_found_without_the_keys(store: Store):
    opened: list[str] = []
    paths = [put(store, n, rows({n: str(n)})) for n in range(6)]
    write_keys(store, "outcomes", paths)
    table = StoredTable(CountingStore(store.root, opened), "outcomes")
    lookup = Lookup(table, [table])
    assert values(lookup, [2, 3, 4], 3) == {2: "2", 3: "3", 4: "4"}
    assert {path.partition("/")[0] for path in opened} == {"outcomes"}
    assert values(lookup, [0, 5], 3) == {0: "0", 5: "5"}
    assert "keys/outcomes-00000-bloom.parquet" in opened


def test_what_was_read_is_not_read_again_for_the_next_batch(store: Store):
    opened: list[str] = []
    write_keys(store, "outcomes", [put(store, n, rows({n: "known"})) for n in range(3)])
    table = StoredTable(CountingStore(store.root, opened), "outcomes")
    lookup = Lookup(table, [table])
    assert values(lookup, [1], 1) == {1: "known"}
    assert values(lookup, [7, 8], 1) == {}
    opened.clear()
    assert values(lookup, [9, 10], 1) == {}
    assert opened == []


def test_the_first_row_that_fits_counts_else_the_newest(tmp_path: Path):
    stores = [Store(str(tmp_path / name)) for name in ("new", "base", "old")]
    for store, value in zip(stores, ("bad new", "bad base", "good old"), strict=True):
        put(store, 0, rows({1: value, 2: value.replace("good", "bad")}))
    new, base, old = (StoredTable(store, "outcomes") for store in stores)
    lookup = Lookup(base, [new, base, old])

    def good(row: dict[str, str]) -> bool:
        return row["value"].startswith("good")

    found = lookup.find([key(1), key(2), key(3)], 0, fits=good)
    assert {k: row["value"] for k, row in found.items()} == {
        key(1): "good old",
        key(2): "bad new",
    }


def test_a_row_of_the_base_that_is_not_sure_gives_way_to_a_newer_build(tmp_path: Path):
    stores = [Store(str(tmp_path / name)) for name in ("new", "base")]
    put(stores[0], 7, rows({1: "answered", 2: "other"}))
    put(stores[1], 0, rows({1: "rejected", 2: "answered"}))
    new, base = (StoredTable(store, "outcomes") for store in stores)
    found = Lookup(base, [new, base]).find(
        [key(1), key(2)], 0, surely=lambda row: row["value"] == "answered"
    )
    assert {row["value"] for row in found.values()} == {"answered"}


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


@given(st.text(), st.none() | REJECTIONS, st.none() | FACTS, st.booleans())
def test_clip_records_survive_their_table(
    uri: str, rejection: Rejection | None, facts: ClipFacts | None, missing
):
    name = uri.encode("utf-8", "replace").decode()
    refused = None if facts else rejection
    seen = ClipRecord(name, "7:etag", "c" * 64, refused, facts, missing)
    row = clip_table([seen]).to_pylist()[0]
    assert row["key"] == uri_key(seen.uri)
    assert clip_from_row(row) == seen


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
