"""Choosing a build and asking again: nothing that has an answer is asked twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_build_publish import MODEL, answered, finish, planned, rejected

from earwitness.builds.choose import choose_build, existing_build
from earwitness.builds.persist import persist_shard
from earwitness.builds.publish import publish_build
from earwitness.builds.retry import build_to_retry, unpublished_build
from earwitness.builds.show import build_status, finished_rows
from earwitness.builds.sources import outcomes_of
from earwitness.errors import BuildNotFoundError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.builds.layout import Build

NEWER = "b-20261123T000000Z-bbbbbb"


@pytest.fixture
def whole(tmp_path: Path) -> Build:
    build = planned(tmp_path)
    finish(build, 0, [answered(0), answered(1)])
    finish(build, 1, [rejected(2), answered(3)])
    persist_shard(build, 0)
    persist_shard(build, 1)
    return build


def test_an_unpublished_build_is_continued(whole: Build):
    choice = choose_build(whole.plan.settings, MODEL)
    assert (choice.build.id, choice.continued) == (whole.id, True)


def test_new_starts_another_build(whole: Build):
    assert choose_build(whole.plan.settings, MODEL, new=True).build.id != whole.id


def test_a_published_build_is_not_continued(whole: Build):
    publish_build(whole)
    assert not choose_build(whole.plan.settings, MODEL).continued


def test_an_unpublished_build_older_than_the_published_one_is_left_alone(
    whole: Build, tmp_path: Path
):
    # its manifest is the same file, so that only its age speaks against it
    newer = planned(tmp_path, name=NEWER)
    finish(newer, 0, [answered(0), answered(1)])
    finish(newer, 1, [answered(2), answered(3)])
    persist_shard(newer, 0)
    persist_shard(newer, 1)
    publish_build(newer)
    assert choose_build(whole.plan.settings, MODEL).build.id not in {whole.id, newer.id}


def test_other_settings_start_another_build(whole: Build):
    other = whole.plan.settings.model_copy(update={"max_tokens": 7})
    assert not choose_build(other, MODEL).continued


def test_the_build_named_is_taken(whole: Build):
    named = whole.plan.settings.model_copy(update={"build": "mine"})
    choice = choose_build(named, MODEL)
    assert (choice.build.id, choice.continued) == ("mine", False)


@pytest.mark.parametrize("build", ["../x", "a/b", "", ".hidden"])
def test_an_id_that_would_lead_elsewhere_is_refused(whole: Build, build: str):
    named = whole.plan.settings.model_copy(update={"build": build})
    with pytest.raises(SettingsError, match="cannot be a build's id"):
        choose_build(named, MODEL)


def test_a_build_that_is_not_there_is_told(whole: Build):
    with pytest.raises(BuildNotFoundError, match=f"newest: {whole.id}"):
        existing_build(whole.output.root, "other")


def test_a_retry_is_a_new_build_over_the_same_rows(whole: Build):
    again = build_to_retry(whole, ["silent"])
    assert again.id != whole.id
    assert again.gates.retry_reasons == ("silent",)
    assert again.plan.shards == whole.plan.shards
    assert again.plan.identity == whole.plan.identity
    assert again.plan.planned_at > whole.plan.planned_at
    assert again.plan.base == whole.id


def test_answers_of_unfinished_shards_are_kept_for_the_retry(tmp_path: Path):
    build = planned(tmp_path)
    finish(build, 0, [answered(0), rejected(1)])
    again = build_to_retry(build, ["silent"])
    known = outcomes_of(again).find([bytes.fromhex(f"{0:064x}")], 0)
    assert [row["answer"] for row in known.values()] == ["answer 0"]


def test_a_reason_the_build_does_not_have_is_told_with_those_it_has(whole: Build):
    with pytest.raises(SettingsError, match="it has: silent 1"):
        build_to_retry(whole, ["not_finite"])


def test_faults_of_the_manifest_cannot_be_asked_again(whole: Build):
    with pytest.raises(SettingsError, match="correct these lines"):
        build_to_retry(whole, ["malformed_line"])


def test_the_newest_unpublished_build_goes_on(whole: Build, tmp_path: Path):
    newer = planned(tmp_path, name=NEWER)
    assert unpublished_build(whole.output.root).id == newer.id
    publish_build(whole)
    assert unpublished_build(whole.output.root).id == newer.id


def test_nothing_unfinished_is_told(whole: Build):
    publish_build(whole)
    with pytest.raises(BuildNotFoundError, match="there is no unfinished build"):
        unpublished_build(whole.output.root)


def test_status_equals_the_ledger_once_all_shards_are_done(whole: Build):
    before = build_status(whole)
    assert before.counts.balanced
    assert (before.done, before.started, before.published) == (2, (), False)
    facts = publish_build(whole)
    assert build_status(whole).counts.model_dump() == facts["counts"]


def test_rows_come_in_order_from_either_format(tmp_path: Path):
    for number, formats in enumerate((["jsonl"], ["parquet"])):
        folder = tmp_path / formats[0]
        folder.mkdir()
        build = planned(folder, layout={"shard_rows": 4, "formats": formats})
        finish(build, 0, [answered(3), rejected(1), answered(0), answered(2)])
        receipt = persist_shard(build, 0)
        rows = finished_rows(build, receipt)
        assert [row.row for row in rows] == [0, 1, 2, 3], number
        assert [row.answer for row in rows] == ["answer 0", None, "answer 2", "answer 3"]
