"""A plan freezes every line of the manifest, once, and is found again by what makes it itself."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from earwitness.builds.layout import Build, Gates, shard_path
from earwitness.builds.plan import (
    copy_plan,
    find_unpublished,
    manifest_stamp,
    plan_build,
    plan_identity,
)
from earwitness.builds.prepare import resolve_model, resolve_settings
from earwitness.builds.resolve import read_shard
from earwitness.errors import (
    BuildDamagedError,
    BuildNotFoundError,
    BuildVersionError,
    ManifestError,
    SettingsError,
)
from earwitness.identity import ModelIdentity
from earwitness.records import Reason
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

MODEL = ModelIdentity("declared", "stand-in", "")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def line(number: int) -> dict[str, object]:
    asked = [{"from": "human", "value": "What do you hear?"}]
    return {"audio": [f"clips/{number}.wav"], "conversation": asked, "id": number}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "manifest.jsonl"
    path.parent.mkdir()
    lines = [json.dumps(line(number)) for number in range(7)]
    lines[3] = "{not json"
    path.write_text("\n".join(lines) + "\n")
    return path


def resolved(manifest: Path, **changes: object) -> BuildSettings:
    given = {"layout": {"shard_rows": 3}, **changes}
    output = str(manifest.parent.parent / "out")
    return resolve_settings(BuildSettings(manifest=str(manifest), output=output, **given))


def planned(
    manifest: Path,
    name: str = "a-20261122T120000Z-abcdef",
    planned_at: datetime = NOON,
    **changes: object,
) -> Build:
    settings = resolved(manifest, **changes)
    build = Build(settings.output, name)
    plan_build(build, settings, MODEL, planned_at)
    return build


def test_every_line_is_in_exactly_one_shard_in_order(manifest: Path):
    build = planned(manifest)
    shards = [list(read_shard(build, number)) for number in range(len(build.plan.shards))]
    assert [len(shard) for shard in shards] == [3, 3, 1]
    assert [row.row for shard in shards for row in shard] == list(range(7))
    assert [shard.first_row for shard in build.plan.shards] == [0, 3, 6]


def test_two_builds_planned_within_one_second_have_an_order(manifest: Path):
    early, late = (
        planned(manifest, f"a-20261122T120000Z-{letter * 6}", NOON + timedelta(microseconds=after))
        for letter, after in (("b", 1), ("a", 2))
    )
    assert early.plan.planned_at < late.plan.planned_at


def test_a_malformed_line_is_a_rejected_row(manifest: Path):
    build = planned(manifest)
    bad = next(iter(read_shard(build, 1)))
    assert bad.rejection is not None
    assert bad.rejection.reason is Reason.MALFORMED_LINE
    assert [shard.rejected for shard in build.plan.shards] == [0, 1, 0]


def test_clips_are_absolute_and_records_are_as_they_came(manifest: Path):
    row = list(read_shard(planned(manifest), 0))[1]
    assert row.clips == (str(manifest.parent / "clips/1.wav"),)
    assert row.record == line(1)


def test_the_plan_knows_the_manifests_digest(manifest: Path):
    build = planned(manifest)
    assert build.plan.manifest.sha256 == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert build.plan.manifest.stamp == manifest_stamp(str(manifest))


def test_the_plan_knows_the_line_of_a_row_where_no_line_is_empty(manifest: Path):
    assert planned(manifest).plan.manifest.line_of(4) == 5
    manifest.write_text(manifest.read_text().replace("\n", "\n\n", 1))
    other = planned(manifest, "b-20261122T120000Z-abcdef")
    assert other.plan.manifest.line_of(4) is None


def test_once_planned_nothing_re_plans(manifest: Path):
    build = planned(manifest)
    manifest.write_text(json.dumps(line(99)) + "\n")
    assert planned(manifest).plan == build.plan


def test_rows_changed_after_planning_are_refused(manifest: Path):
    build = planned(manifest)
    rows = build.store.read_bytes(shard_path(0))
    build.store.write_bytes(shard_path(0), rows.replace(b'"id": 1', b'"id": 9'))
    with pytest.raises(BuildDamagedError, match="changed after the build was planned"):
        list(read_shard(build, 0))


def test_clips_found_only_from_the_working_directory_are_explained(manifest: Path, monkeypatch):
    elsewhere = manifest.parent.parent / "elsewhere"
    (elsewhere / "clips").mkdir(parents=True)
    for number in range(7):
        (elsewhere / "clips" / f"{number}.wav").touch()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ManifestError, match=r"--audio-root \."):
        planned(manifest)


def test_a_field_named_like_the_answer_is_refused_with_the_option_that_helps(manifest: Path):
    manifest.write_text(json.dumps({**line(0), "answer": "x"}) + "\n")
    with pytest.raises(SettingsError, match="--answer-column"):
        planned(manifest)


def test_an_equal_unpublished_build_is_found_again(manifest: Path):
    build = planned(manifest)
    settings = resolved(manifest)
    found = find_unpublished(
        settings.output, plan_identity(settings, MODEL), manifest_stamp(str(manifest))
    )
    assert found is not None
    assert found.id == build.id


def test_the_newest_of_several_is_continued(manifest: Path):
    for name in ("b-20261101T000000Z-aaaaaa", "a-20261122T000000Z-bbbbbb"):
        planned(manifest, name)
    settings = resolved(manifest)
    found = find_unpublished(
        settings.output, plan_identity(settings, MODEL), manifest_stamp(str(manifest))
    )
    assert found is not None
    assert found.id == "a-20261122T000000Z-bbbbbb"


@pytest.mark.parametrize("change", ["settings", "model", "manifest", "published", "unplanned"])
def test_another_build_is_not_continued(manifest: Path, change: str):
    build = planned(manifest)
    settings, model = resolved(manifest), MODEL
    if change == "settings":
        settings = resolved(manifest, max_tokens=3)
    if change == "model":
        model = ModelIdentity("declared", "another", "")
    if change == "manifest":
        manifest.write_text(manifest.read_text() + json.dumps(line(8)) + "\n")
    if change == "published":
        build.store.write_bytes("build.json", b"{}")
        pointer = {"build": build.id, "planned_at": build.plan.planned_at}
        build.output.write_bytes("latest.json", json.dumps(pointer).encode())
    if change == "unplanned":
        build.store.delete(["plan.json"])
    found = find_unpublished(
        settings.output, plan_identity(settings, model), manifest_stamp(str(manifest))
    )
    assert found is None


def test_an_output_that_was_moved_is_continued_where_it_is(manifest: Path, tmp_path: Path):
    build = planned(manifest)
    identity = build.plan.identity
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = Build(str(tmp_path / "moved"), build.id)
    assert moved.plan.settings.output == str(tmp_path / "moved")
    assert moved.plan.identity == identity


def test_a_copied_plan_has_the_same_rows_and_its_own_gates(manifest: Path):
    build = planned(manifest)
    copy = Build(build.output.root, "a-20261123T000000Z-cccccc")
    gates = Gates(max_rejected=0.1, retry_reasons=("silent",))
    copy_plan(build, copy, datetime(2026, 11, 23, tzinfo=UTC), gates)
    assert [list(read_shard(copy, n)) for n in range(3)] == [
        list(read_shard(build, n)) for n in range(3)
    ]
    assert copy.plan.question_digest == build.plan.question_digest
    assert copy.gates == gates


def test_a_build_that_was_never_planned_says_so(tmp_path: Path):
    with pytest.raises(BuildNotFoundError, match=r"plan\.json"):
        _ = Build(str(tmp_path), "nothing").plan


@pytest.mark.parametrize("version", [1, 99, None])
def test_an_output_of_another_version_is_refused_by_name(manifest: Path, version: int | None):
    build = planned(manifest)
    plan = json.loads(build.store.read_bytes("plan.json")) | {"version": version}
    build.store.write_bytes("plan.json", json.dumps(plan).encode())
    old = Build(build.output.root, build.id)
    with pytest.raises(BuildVersionError, match=f"planned the build {re.escape(old.uri)}"):
        _ = old.plan
    with pytest.raises(BuildVersionError, match="build into another output folder"):
        planned(manifest, name="a-20261123T000000Z-cccccc")


def test_a_question_comes_from_a_name_a_file_or_the_text_itself(manifest: Path, tmp_path: Path):
    asked = tmp_path / "question.txt"
    asked.write_text("Who speaks?\n")
    assert resolved(manifest, question=f"@{asked}").question == "Who speaks?"
    assert resolved(manifest, question="Who?").question == "Who?"
    assert resolved(manifest, question="caption").question.startswith("Describe")


def test_a_question_file_that_is_not_there_is_named(manifest: Path):
    with pytest.raises(SettingsError, match="--question @nowhere"):
        resolved(manifest, question="@nowhere")


def test_the_longest_clip_is_what_the_models_preprocessor_says(manifest: Path, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    assert resolved(manifest, model=str(model)).audio.max_duration_s == 30
    (model / "preprocessor_config.json").write_text('{"chunk_length": 12}')
    assert resolved(manifest, model=str(model)).audio.max_duration_s == 12
    set_by_hand = {"max_duration_s": 5}
    assert resolved(manifest, model=str(model), audio=set_by_hand).audio.max_duration_s == 5


def test_a_build_without_model_or_engine_is_told_what_to_give(manifest: Path):
    with pytest.raises(SettingsError, match="--model"):
        resolve_model(resolved(manifest))
