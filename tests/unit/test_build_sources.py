"""Which builds a build reuses, and what it hands on to the next one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from test_build_publish import answered, kept, planned, rejected, whole

from earwitness.builds.batch import write_resolved, write_segment
from earwitness.builds.layout import Build, work_path
from earwitness.builds.persist import persist_shard
from earwitness.builds.publish import publish_build
from earwitness.builds.sources import Sources, choose_sources, outcomes_of
from earwitness.cache import ClipRecord
from earwitness.cache.tables import clip_table
from earwitness.identity import cache_key
from earwitness.records import Answer, ClipFacts, HeardSound, Outcome, Reason, Rejection, Stage

if TYPE_CHECKING:
    from pathlib import Path


def build_id(day: int) -> str:
    return f"b-202611{day:02d}T000000Z-aaaaaa"


def published(folder: Path, day: int, **more) -> str:
    build = whole(folder, name=build_id(day), **more)
    publish_build(build)
    return build.id


def unpublished(folder: Path, day: int, **more) -> str:
    return planned(folder, name=build_id(day), **more).id


OTHER = {"layout": {"shard_rows": 2, "name": "other"}}


def test_the_newest_published_build_of_each_name_and_what_came_after_it_are_sources(tmp_path: Path):
    output = str(tmp_path / "out")
    assert choose_sources(output, "out", "") == Sources("", ())
    published(tmp_path, 1)
    unpublished(tmp_path, 2)
    published(tmp_path, 3, **OTHER)
    first = published(tmp_path, 4)
    second = unpublished(tmp_path, 5)
    third = published(tmp_path, 6, **OTHER)
    fourth = unpublished(tmp_path, 7, **OTHER)
    assert choose_sources(output, "out", "") == Sources(first, (fourth, third, second, first))
    assert choose_sources(output, "new", "") == Sources("", (fourth, third, second, first))


def test_what_a_retry_starts_from_is_its_base_however_old_it_is(tmp_path: Path):
    old, new = published(tmp_path, 1), published(tmp_path, 2)
    assert choose_sources(str(tmp_path / "out"), "out", "", base=old) == Sources(old, (new, old))


def test_the_newest_build_of_the_same_model_and_sampling_is_a_source_too(tmp_path: Path):
    output = str(tmp_path / "out")
    warm = {"sampling": {"temperature": 0.9}}
    published(tmp_path, 1)
    cold = published(tmp_path, 2)
    other = published(tmp_path, 3, **warm)
    newest = published(tmp_path, 4, **warm)
    question = Build(output, cold).plan.question_digest
    assert choose_sources(output, "out", question) == Sources(newest, (newest, cold))
    question = Build(output, other).plan.question_digest
    assert choose_sources(output, "out", question) == Sources(newest, (newest,))


def test_a_plan_names_its_sources(tmp_path: Path):
    first = published(tmp_path, 1)
    plan = planned(tmp_path, name=build_id(2)).plan
    assert (plan.base, plan.sources) == (first, (first,))


def test_answers_of_an_unfinished_shard_are_found_before_it_is_finished(tmp_path: Path):
    build = planned(tmp_path, name=build_id(1))
    write_resolved(build, 0, [])
    write_segment(build, f"{work_path(0)}/batch-00000-0.parquet", [answered(0)], [])
    later = planned(tmp_path, name=build_id(2))
    keys = [bytes.fromhex(f"{row:064x}") for row in (0, 1)]
    assert list(outcomes_of(later).find(keys, 5)) == keys[:1]


def test_a_source_that_was_removed_holds_nothing(tmp_path: Path):
    first = published(tmp_path, 1)
    later = planned(tmp_path, name=build_id(2))
    later.output.sub(f"builds/{first}").delete_folder("")
    assert outcomes_of(later).find([bytes.fromhex(f"{0:064x}")], 0) == {}


PCM = "d" * 64
KNOWN = ClipFacts("wav", 1, 1.5, 0.0, (HeardSound(16_000, None, 1.5, 0.5, PCM),))
LATER = Rejection(Stage.FETCH, Reason.FETCH_FAILED, "later")
MISSING = Rejection(Stage.RESOLVE, Reason.CLIP_MISSING, "gone")


def first_row_key(build: Build) -> tuple[str, str]:
    """The URI of the first row's clip, and its cache key."""
    from earwitness.builds.resolve import read_shard

    row = next(read_shard(build, 0))
    return row.clips[0], cache_key([PCM], row.messages, build.plan.question_digest)


@pytest.mark.parametrize("why", [LATER, MISSING])
def test_what_is_known_of_a_row_that_fails_tonight_is_handed_on(tmp_path: Path, why: Rejection):
    base = planned(tmp_path, name=build_id(1))
    uri, key = first_row_key(base)
    outcome = Outcome(key, Answer("a bell", "stop", 9, 3), max_tokens=256)
    write_resolved(base, 0, [])
    decided = [dataclasses.replace(answered(0), outcome=outcome), answered(1)]
    seen = ClipRecord(uri, "1:e", "a" * 64, facts=KNOWN)
    write_segment(base, f"{work_path(0)}/batch-00000-0.parquet", decided, [seen])
    persist_shard(base, 0)

    tonight = planned(tmp_path, name=build_id(2))
    known = dataclasses.replace(seen, missing=why is MISSING)
    failed = dataclasses.replace(rejected(0, why), outcome=Outcome("", None, why))
    write_resolved(tonight, 0, [failed, answered(1)], [clip_table([known])])
    counts = persist_shard(tonight, 0).counts
    assert (counts.answered, counts.rejected) == (1, 1)
    assert bytes.fromhex(key) in kept(tonight, "outcomes", [bytes.fromhex(key)])

    after = planned(tmp_path, name=build_id(3))
    found = outcomes_of(after).find([bytes.fromhex(key)], 0)
    assert found[bytes.fromhex(key)]["answer"] == "a bell"


def test_a_row_that_is_answered_after_all_hands_on_its_new_answer(tmp_path: Path):
    build = planned(tmp_path, name=build_id(1))
    write_resolved(build, 0, [])
    path = f"{work_path(0)}/batch-0000{{}}-0.parquet"
    write_segment(build, path.format(0), [rejected(0, LATER), answered(1)], [])
    write_segment(build, path.format(1), [answered(0)], [])
    persist_shard(build, 0)
    keys = [bytes.fromhex(f"{row:064x}") for row in (0, 1)]
    assert sorted(kept(build, "outcomes", keys)) == keys


def test_what_a_batch_found_of_a_clip_counts_more_than_what_was_known(tmp_path: Path):
    build = planned(tmp_path, name=build_id(1))
    before, now = (ClipRecord("x.wav", stamp, "a" * 64) for stamp in ("1:old", "2:new"))
    write_resolved(build, 0, [], [clip_table([before])])
    decided = [answered(0), answered(1)]
    write_segment(build, f"{work_path(0)}/batch-00000-0.parquet", decided, [now])
    receipt = persist_shard(build, 0)
    assert [file.rows for file in receipt.files if file.path.startswith("clips/")] == [1]
    from earwitness.builds.sources import clips_of
    from earwitness.cache.tables import uri_key

    later = planned(tmp_path, name=build_id(2))
    assert clips_of(later).find([uri_key("x.wav")], 0)[uri_key("x.wav")]["stamp"] == "2:new"
