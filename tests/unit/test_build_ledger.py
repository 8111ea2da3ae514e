"""The ledger and the cache of a build do not depend on which attempt asked what."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
from test_build_publish import HEARD, answered, planned, rejected

from earwitness.builds.batch import Batch, Decided, RowState, Segment, write_resolved, write_segment
from earwitness.builds.layout import Counts, work_path
from earwitness.builds.persist import persist_shard
from earwitness.builds.retry import build_to_retry
from earwitness.builds.show import build_status
from earwitness.builds.stages import recall_duplicates, recall_rows
from earwitness.records import Reason, Rejection, Stage
from earwitness.runtime import ShardMemory

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.builds.layout import Build


def same_question(row: int, as_row: int, *, reused: bool = False) -> Decided:
    return dataclasses.replace(answered(as_row, reused=reused), row=row)


def persisted(build: Build, *batches: list[Decided]) -> Counts:
    write_resolved(build, 0, [])
    for number, decided in enumerate(batches):
        write_segment(build, f"{work_path(0)}/batch-{number:05d}-0.parquet", decided, [])
    return persist_shard(build, 0).counts


def stored(build: Build) -> list[bytes]:
    """The keys of the outcomes that a build's first shard has."""
    receipt = build.receipt(0)
    paths = [one.path for one in receipt.files if one.path.startswith("outcomes/")]
    with build.store.open(paths[0]) as file:
        return pq.read_table(file, columns=["key"])["key"].to_pylist()


@pytest.mark.parametrize("first", [0, 1])
def test_of_rows_that_ask_the_same_one_counts_as_generated_and_is_kept(tmp_path: Path, first: int):
    build = planned(tmp_path)
    rows = [same_question(0, 7), same_question(1, 7)]
    counts = persisted(build, [rows[first]], [rows[1 - first]])
    assert (counts.generated, counts.reused) == (1, 1)
    assert stored(build) == [bytes.fromhex(f"{7:064x}")]


def test_an_answer_of_an_earlier_build_counts_as_reused_and_is_kept_once_more(
    tmp_path: Path,
):
    build = planned(tmp_path)
    counts = persisted(build, [same_question(0, 7, reused=True), same_question(1, 7, reused=True)])
    assert (counts.generated, counts.reused) == (0, 2)
    assert stored(build) == [bytes.fromhex(f"{7:064x}")]


def test_an_answer_that_only_the_twins_batch_kept_is_this_builds_own(tmp_path: Path):
    build, memory = planned(tmp_path), ShardMemory()
    path = f"{work_path(0)}/batch-00001-0.parquet"
    write_segment(build, path, [same_question(1, 7)], [])
    memory.answered[bytes.fromhex(f"{7:064x}")] = path
    row = RowState(0, [], [], cache_key=f"{7:064x}", heard=HEARD)
    recall_duplicates(build, memory, [row])
    assert row.outcome == answered(7).outcome
    assert not row.reused


def test_the_status_of_an_unfinished_shard_counts_a_question_once(tmp_path: Path):
    build = planned(tmp_path)
    write_resolved(build, 0, [])
    rows = [same_question(0, 7), same_question(1, 7)]
    write_segment(build, f"{work_path(0)}/batch-00000-0.parquet", rows, [])
    counts = build_status(build).counts
    assert (counts.generated, counts.reused) == (1, 1)


def test_a_shard_does_not_read_what_another_shard_of_its_build_found_out(tmp_path: Path):
    build = planned(tmp_path)
    write_resolved(build, 1, [])
    decided = [same_question(2, 7), same_question(3, 7)]
    write_segment(build, f"{work_path(1)}/batch-00000-0.parquet", decided, [])
    persist_shard(build, 1)
    row = RowState(0, [], [], cache_key=f"{7:064x}", heard=HEARD)
    recall_rows(build, Batch([row]).open_rows(), 0)
    assert row.outcome is None
    later = planned(tmp_path, name="b-20261123T000000Z-bbbbbb")
    recall_rows(later, Batch([row]).open_rows(), 0)
    assert row.outcome == answered(7).outcome
    assert row.reused


DIED = Rejection(Stage.GENERATE, Reason.ENGINE_DIED, "it died", strikes=1)


def struck(row: int, as_row: int, strikes: int = 1) -> Decided:
    outcome = dataclasses.replace(
        answered(as_row).outcome, answer=None, rejection=dataclasses.replace(DIED, strikes=strikes)
    )
    return Decided(row, outcome, reused=False)


def test_a_record_with_strikes_is_asked_again_by_the_next_build_which_knows_them(tmp_path: Path):
    persisted(planned(tmp_path), [struck(0, 7), answered(1)])
    later = planned(tmp_path, name="b-20261123T000000Z-bbbbbb")
    row = RowState(0, [], [], cache_key=f"{7:064x}", heard=HEARD)
    recall_rows(later, [row], 0)
    assert (row.outcome, row.strikes) == (None, 1)


def test_a_record_that_is_answered_has_no_strikes_any_more(tmp_path: Path):
    build = planned(tmp_path)
    persisted(build, [struck(0, 7)], [same_question(1, 7)])
    assert stored(build) == [bytes.fromhex(f"{7:064x}")]
    row = RowState(0, [], [], cache_key=f"{7:064x}", heard=HEARD)
    recall_rows(planned(tmp_path, name="b-20261123T000000Z-bbbbbb"), [row], 0)
    assert row.outcome == answered(7).outcome


def test_strikes_are_counted_over_the_attempts_at_a_build(tmp_path: Path):
    build = planned(tmp_path)
    path = f"{work_path(0)}/batch-00000-0.parquet"
    write_segment(build, path, [struck(0, 7, strikes=2), answered(1)], [])
    assert Segment(build, path).strikes() == {f"{7:064x}": 2}


def test_strikes_of_an_unfinished_build_are_known_to_the_one_that_retries_it(tmp_path: Path):
    build = planned(tmp_path)
    write_resolved(build, 0, [])
    decided = [struck(0, 7), rejected(1)]
    write_segment(build, f"{work_path(0)}/batch-00000-0.parquet", decided, [])
    target = build_to_retry(build, ["silent"])
    row = RowState(0, [], [], cache_key=f"{7:064x}", heard=HEARD)
    recall_rows(target, [row], 0)
    assert (row.outcome, row.strikes) == (None, 1)
