"""What is published is whole, adds up and is pointed at last; anything else is not published."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import earwitness
from earwitness.addresses import local_path
from earwitness.builds.batch import Decided, write_resolved, write_segment
from earwitness.builds.gc import find_garbage, remove_garbage
from earwitness.builds.layout import Build, Counts, receipt_path, work_path
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.publish import latest_build, publish_build
from earwitness.builds.resolve import read_shard
from earwitness.cache import ClipRecord, StoredTable
from earwitness.cache.tables import uri_key
from earwitness.errors import (
    BuildDamagedError,
    BuildNotFoundError,
    ShardFailedError,
    TooManyRejectionsError,
)
from earwitness.identity import ModelIdentity
from earwitness.records import Answer, HeardClip, Outcome, Reason, Rejection, Stage
from earwitness.settings import BuildSettings
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODEL = ModelIdentity("declared", "stand-in", "")
SILENT = Rejection(Stage.DECODE, Reason.SILENT, "silent")
LATER = Rejection(Stage.FETCH, Reason.FETCH_TIMEOUT, "later")
HEARD = (HeardClip("a" * 64, 1.5, 1.5),)


def answered(row: int, *, reused: bool = False) -> Decided:
    answer = Answer(f"answer {row}", "stop", 10, 3)
    return Decided(row, Outcome(f"{row:064x}", answer, None, HEARD, 256), reused)


def rejected(row: int, why: Rejection = SILENT) -> Decided:
    return Decided(row, Outcome(f"{row:064x}", None, why, HEARD, 256), reused=False)


def planned(
    folder: Path,
    rows: int = 4,
    name: str = "b-20261122T000000Z-aaaaaa",
    clips: Callable[[int], list[str]] = lambda _: ["x.wav"],
    **more,
) -> Build:
    folder.mkdir(exist_ok=True)
    manifest = folder / "manifest.jsonl"
    asked = [{"from": "human", "value": "What?"}]
    lines = [
        json.dumps({"audio": clips(row), "conversation": asked, "id": row}) for row in range(rows)
    ]
    manifest.write_text("\n".join(lines))
    given = {"layout": {"shard_rows": 2}, **more}
    settings = BuildSettings(manifest=str(manifest), output=str(folder / "out"), **given)
    build = Build(settings.output, name)
    started = datetime.strptime(name.split("-")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    plan_build(build, resolve_settings(settings), MODEL, started)
    return build


def kept(build: Build, table: str, keys: list[bytes]) -> list[bytes]:
    """Which of some keys a build's shards hold."""
    return [row["key"] for row in StoredTable(build.store, table).find(keys)]


def finish(build: Build, shard: int, decided: list[Decided], clip_records=()) -> None:
    write_resolved(build, shard, [])
    write_segment(build, f"{work_path(shard)}/batch-00000-0.parquet", decided, list(clip_records))


def whole(folder: Path, name: str = "b-20261122T000000Z-aaaaaa", **more) -> Build:
    """A build of two shards that is ready to be published."""
    made = planned(folder, name=name, **more)
    finish(made, 0, [answered(0), answered(1)])
    finish(made, 1, [answered(2), answered(3)])
    persist_shard(made, 0)
    persist_shard(made, 1)
    return made


def published(manifest: Path, **settings) -> Build:
    """A build of any manifest, its first shard's first half answered, the other half rejected."""
    output = str(manifest.parent / "out")
    given = {"max_rejected": 1, **settings}
    resolved = resolve_settings(BuildSettings(manifest=str(manifest), output=output, **given))
    made = Build(output, "b-20261122T000000Z-aaaaaa")
    plan_build(made, resolved, MODEL, datetime(2026, 11, 22, tzinfo=UTC))
    rows = [row.row for row in read_shard(made, 0) if row.rejection is None]
    half = (len(rows) + 1) // 2
    finish(made, 0, [*map(answered, rows[:half]), *map(rejected, rows[half:])])
    persist_shard(made, 0)
    publish_build(made)
    return made


@pytest.fixture
def build(tmp_path: Path) -> Build:
    made = planned(tmp_path)
    finish(made, 0, [answered(0), answered(1, reused=True)])
    finish(made, 1, [rejected(2), answered(3)])
    return made


def test_a_whole_build_is_published_and_loads(build: Build):
    persist_shard(build, 0)
    persist_shard(build, 1)
    facts = publish_build(build)
    assert facts["counts"]["answered"] == 3
    assert facts["counts"]["generated"] == 2
    assert latest_build(build.output.root) == build.id
    answers = earwitness.load(build.output.root)
    assert list(answers["answer"]) == ["answer 0", "answer 1", "answer 3"]
    assert list(answers["id"]) == [0, 1, 3]
    assert list(answers["earwitness.row"]) == [0, 1, 3]
    refused = earwitness.load_rejected(build.output.root)
    assert list(refused["earwitness.reason"]) == ["silent"]
    assert list(refused["id"]) == [2]


def test_every_engine_that_answered_is_named(build: Build):
    persist_shard(build, 0, engine="0.24.0")
    persist_shard(build, 1, engine="0.33.0", worker="gpu-7")
    assert publish_build(build)["versions"]["engine"] == "0.24.0, 0.33.0"


def test_a_receipt_says_which_worker_did_the_shard(build: Build):
    persist_shard(build, 1, worker="gpu-7")
    receipt = build.receipt(1)
    assert receipt is not None
    assert receipt.worker == "gpu-7"


def test_work_in_progress_is_gone_after_publishing(build: Build):
    persist_shard(build, 0)
    persist_shard(build, 1)
    publish_build(build)
    assert build.store.sizes("work") == {}


def test_publishing_twice_changes_nothing(build: Build):
    persist_shard(build, 0)
    persist_shard(build, 1)
    first = publish_build(build)
    before = {path: build.store.read_bytes(path) for path in build.store.sizes()}
    assert publish_build(build) == first
    assert {path: build.store.read_bytes(path) for path in build.store.sizes()} == before


def test_a_shard_without_a_receipt_is_not_published(build: Build):
    persist_shard(build, 0)
    with pytest.raises(BuildDamagedError, match="1 of 2 shards have no receipt"):
        publish_build(build)
    assert latest_build(build.output.root) == ""


def test_a_file_changed_behind_our_back_is_not_published(build: Build):
    receipt = persist_shard(build, 0)
    persist_shard(build, 1)
    build.store.write_bytes(receipt.files[0].path, b"other")
    with pytest.raises(BuildDamagedError, match="was changed"):
        publish_build(build)


def test_a_file_that_is_gone_is_not_published(build: Build):
    receipt = persist_shard(build, 0)
    persist_shard(build, 1)
    build.store.delete([receipt.files[0].path])
    with pytest.raises(BuildDamagedError, match="is missing"):
        publish_build(build)


def test_the_shard_of_a_damaged_file_alone_is_done_again(build: Build):
    receipt = persist_shard(build, 0)
    persist_shard(build, 1)
    build.store.delete([receipt.files[0].path])
    with pytest.raises(BuildDamagedError, match="it repeats 1 of 2 shards"):
        publish_build(build)
    assert build.missing_shards() == [0]
    assert persist_shard(build, 0) == receipt
    assert publish_build(build)["counts"]["answered"] == 3


def test_a_shard_that_is_done_is_not_written_again(build: Build):
    first = persist_shard(build, 0)
    finish(build, 0, [answered(0), rejected(1)])
    assert persist_shard(build, 0) == first
    assert build.receipt(0) == first


def test_who_comes_back_after_publishing_leaves_no_file_behind(build: Build):
    for shard in (0, 1):
        persist_shard(build, shard)
    publish_build(build)
    there = {path: build.store.read_bytes(path) for path in build.store.sizes("data")}
    build.store.delete([receipt_path(0)])  # as a process sees it that looked before
    finish(build, 0, [rejected(0), rejected(1)])
    persist_shard(build, 0)
    assert {path: build.store.read_bytes(path) for path in build.store.sizes("data")} == there
    assert len(earwitness.load(build.output.root)) == 3


def test_a_receipt_that_does_not_add_up_is_not_published(build: Build):
    receipt = persist_shard(build, 0)
    persist_shard(build, 1)
    counts = receipt.counts.model_copy(update={"answered": 9})
    wrong = receipt.model_copy(update={"counts": counts})
    build.store.write_bytes(receipt_path(0), wrong.to_bytes())
    with pytest.raises(earwitness.errors.LedgerError, match="do not add up"):
        publish_build(build)


def test_files_no_receipt_names_are_deleted(build: Build):
    persist_shard(build, 0)
    persist_shard(build, 1)
    build.store.write_bytes("data/shard-00000-deadbeef.parquet", b"of a zombie")
    publish_build(build)
    assert not build.store.exists("data/shard-00000-deadbeef.parquet")


def test_too_many_rejections_are_not_published_and_the_knob_is_named(tmp_path: Path):
    build = planned(tmp_path, max_rejected=0.1)
    finish(build, 0, [answered(0), rejected(1)])
    finish(build, 1, [answered(2), answered(3)])
    persist_shard(build, 0)
    persist_shard(build, 1)
    with pytest.raises(TooManyRejectionsError, match="--max-rejected"):
        publish_build(build)
    build.set_gates(build.gates.model_copy(update={"max_rejected": 0.25}))
    publish_build(build)


def test_the_pointer_never_moves_back(tmp_path: Path):
    builds = [
        whole(tmp_path, name) for name in ("b-20261123T000000Z-aaaaaa", "b-20261122T000000Z-bbbbbb")
    ]
    for build in builds:
        publish_build(build)
    assert latest_build(builds[0].output.root) == builds[0].id


def page(output: str) -> str:
    return Store(output).read_bytes("README.md").decode()


def pointed_files(output: str) -> list[str]:
    """What the front matter of an output's page names, as loaders read it."""
    (config,) = yaml.safe_load(page(output).split("---\n")[1])["configs"]
    return [file["path"] for file in config["data_files"]]


def test_the_output_has_a_page_that_points_into_the_newest_build(tmp_path: Path):
    for number, name in enumerate(("b-20261122T000000Z-aaaaaa", "b-20261123T000000Z-bbbbbb")):
        build = whole(tmp_path, name)
        publish_build(build)
        output = build.output.root
        assert pointed_files(output) == [f"builds/{name}/data/*.parquet"]
        assert len(list((tmp_path / "out").glob(pointed_files(output)[0]))) == 2, number
        card = build.store.read_bytes("README.md").decode()
        assert card.partition("\n---\n")[2].strip() in page(output)


@pytest.mark.parametrize(("seed", "told"), [(None, "none"), (7, "7")])
def test_the_card_says_whether_answers_were_sampled_with_a_seed(tmp_path: Path, seed, told):
    build = whole(tmp_path, sampling={"seed": seed})
    publish_build(build)
    assert f", seed {told}, " in build.store.read_bytes("README.md").decode()


def test_the_page_of_json_lines_alone_points_at_them(tmp_path: Path):
    build = whole(tmp_path, layout={"shard_rows": 2, "formats": ["jsonl"]})
    publish_build(build)
    assert pointed_files(build.output.root) == [f"builds/{build.id}/jsonl/*.jsonl"]


def test_the_page_never_moves_back(tmp_path: Path):
    newer = whole(tmp_path, "b-20261123T000000Z-aaaaaa")
    older = whole(tmp_path, "b-20261122T000000Z-bbbbbb")
    publish_build(newer)
    publish_build(older)
    assert pointed_files(older.output.root) == [f"builds/{newer.id}/data/*.parquet"]


NIGHTS = ("b-20261122T000000Z-aaaaaa", "b-20261123T000000Z-bbbbbb")


@pytest.fixture
def nights(tmp_path: Path) -> list[Build]:
    """Two published builds, and beside them what lay at the output after the first."""
    builds = [whole(tmp_path, name) for name in NIGHTS]
    publish_build(builds[0])
    for path in ("README.md", "latest.json"):
        builds[0].store.write_bytes(f"kept/{path}", builds[0].output.read_bytes(path))
    publish_build(builds[1])
    return builds


@pytest.mark.parametrize("behind", [["README.md"], ["latest.json"], ["README.md", "latest.json"]])
def test_what_a_kill_left_behind_is_mended_by_the_next_publish(
    nights: list[Build], behind: list[str]
):
    older, newer = nights
    for path in behind:
        newer.output.write_bytes(path, older.store.read_bytes(f"kept/{path}"))
    publish_build(newer)
    assert pointed_files(newer.output.root) == [f"builds/{newer.id}/data/*.parquet"]
    assert latest_build(newer.output.root) == newer.id


def test_two_publishers_at_once_leave_page_and_pointer_at_the_newer_build(tmp_path: Path):
    builds = [whole(tmp_path, name) for name in NIGHTS]
    with ThreadPoolExecutor(len(builds)) as pool:
        list(pool.map(publish_build, builds))
    output = builds[1].output.root
    assert latest_build(output) == builds[1].id
    assert pointed_files(output) == [f"builds/{builds[1].id}/data/*.parquet"]


@pytest.mark.parametrize("behind", ["README.md", "latest.json"])
def test_gc_removes_nothing_that_the_page_names(nights: list[Build], behind: str):
    older, newer = nights
    newer.output.write_bytes(behind, older.store.read_bytes(f"kept/{behind}"))
    remove_garbage(find_garbage(newer.output.root, keep=1))
    (pattern,) = pointed_files(newer.output.root)
    assert len(list(local_path(newer.output.root).glob(pattern))) == 2


def test_a_page_that_has_not_changed_is_not_written_again(tmp_path: Path):
    build = whole(tmp_path)
    publish_build(build)
    os.utime(tmp_path / "out/README.md", (1_600_000_000, 1_600_000_000))
    publish_build(build)
    assert (tmp_path / "out/README.md").stat().st_mtime == 1_600_000_000


@pytest.mark.parametrize("theirs", ["# My dataset\n", "", "\xff"])
def test_a_page_of_somebodys_own_is_left_alone_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, theirs: str
):
    build = whole(tmp_path)
    build.output.write_bytes("README.md", theirs.encode("latin-1"))
    publish_build(build)
    assert build.output.read_bytes("README.md") == theirs.encode("latin-1")
    assert latest_build(build.output.root) == build.id
    assert f"builds/{build.id}/data/*.parquet" in caplog.text


def test_a_folder_in_the_pages_place_does_not_keep_a_build_back(tmp_path: Path):
    build = whole(tmp_path)
    (tmp_path / "out/README.md").mkdir()
    publish_build(build)
    assert latest_build(build.output.root) == build.id


def test_our_page_without_its_mark_is_somebodys_own(tmp_path: Path):
    first = whole(tmp_path)
    publish_build(first)
    kept = "\n".join(line for line in page(first.output.root).split("\n") if "<!--" not in line)
    first.output.write_bytes("README.md", kept.encode())
    publish_build(whole(tmp_path, "b-20261123T000000Z-bbbbbb"))
    assert page(first.output.root) == kept


def test_a_build_whose_card_is_no_card_any_more_is_published_without_a_page(tmp_path: Path):
    build = whole(tmp_path)
    publish_build(build)
    build.output.delete(["README.md"])
    build.store.write_bytes("README.md", b"---\nconfigs: [\n---\n")
    publish_build(build)
    assert not build.output.exists("README.md")


def test_a_clock_that_was_ahead_does_not_hold_the_pointer(tmp_path: Path):
    for name in ("b-20271122T000000Z-aaaaaa", "b-20261123T000000Z-bbbbbb"):
        build = planned(tmp_path, rows=2, name=name)
        finish(build, 0, [answered(0), answered(1)])
        persist_shard(build, 0)
        publish_build(build)
        assert latest_build(build.output.root) == name


def test_a_row_without_an_outcome_is_never_written_off(tmp_path: Path):
    build = planned(tmp_path)
    finish(build, 0, [answered(0)])
    with pytest.raises(BuildDamagedError, match="row 1"):
        persist_shard(build, 0)


def test_an_answer_beats_an_earlier_passing_rejection(tmp_path: Path):
    build = planned(tmp_path, rows=2)
    finish(build, 0, [rejected(0, LATER), answered(1)])
    write_segment(build, f"{work_path(0)}/batch-00001-0.parquet", [answered(0)], [])
    assert persist_shard(build, 0).counts.answered == 2


def test_a_few_passing_rejections_are_kept_but_not_remembered(tmp_path: Path):
    build = planned(tmp_path, rows=2)
    finish(build, 0, [rejected(0, LATER), answered(1)])
    counts = persist_shard(build, 0).counts
    assert (counts.rejected, counts.transient) == (1, 1)
    assert kept(build, "outcomes", [bytes.fromhex(f"{row:064x}") for row in (0, 1)]) == [
        bytes.fromhex(f"{1:064x}")
    ]


def half_failed(why: Rejection) -> list[Decided]:
    return [rejected(row, why) for row in range(10)] + [answered(row) for row in range(10, 20)]


ONE_SHARD = {"shard_rows": 20}
SECOND = Rejection(Stage.FETCH, Reason.FETCH_TIMEOUT, "clip 2 of 2: later")
UNANSWERED = Rejection(Stage.GENERATE, Reason.ENGINE_TIMEOUT, "later")


def test_too_many_passing_failures_fail_the_shard_instead(tmp_path: Path):
    build = planned(tmp_path, rows=20, clips=lambda row: [f"{row}.wav"], layout=ONE_SHARD)
    finish(build, 0, half_failed(LATER))
    with pytest.raises(ShardFailedError, match="10 of 20 clips"):
        persist_shard(build, 0)
    assert build.receipt(0) is None


def test_many_questions_about_one_clip_that_failed_count_as_one_clip(tmp_path: Path):
    build = planned(tmp_path, rows=20, layout=ONE_SHARD)
    finish(build, 0, half_failed(LATER))
    assert persist_shard(build, 0).counts.transient == 10


def test_of_several_clips_the_one_that_failed_is_counted(tmp_path: Path):
    both = planned(tmp_path / "a", rows=20, clips=lambda r: [f"{r}.wav", "x.wav"], layout=ONE_SHARD)
    finish(both, 0, half_failed(SECOND))
    assert persist_shard(both, 0).counts.transient == 10
    each = planned(tmp_path / "b", rows=20, clips=lambda r: ["x.wav", f"{r}.wav"], layout=ONE_SHARD)
    finish(each, 0, half_failed(SECOND))
    with pytest.raises(ShardFailedError, match="10 of 21 clips"):
        persist_shard(each, 0)


def test_clips_that_were_known_already_are_none_that_failures_are_held_against(tmp_path: Path):
    layout = {"shard_rows": 2000}
    build = planned(tmp_path, rows=2000, clips=lambda row: [f"{row}.wav"], layout=layout)
    finish(build, 0, [*half_failed(LATER)])
    known = [answered(row, reused=True) for row in range(20, 2000)]
    write_resolved(build, 0, known)
    with pytest.raises(ShardFailedError, match="10 of 20 clips"):
        persist_shard(build, 0)


def test_questions_the_engine_did_not_answer_are_held_against_questions(tmp_path: Path):
    build = planned(tmp_path, rows=20, layout=ONE_SHARD)
    finish(build, 0, half_failed(UNANSWERED))
    with pytest.raises(ShardFailedError, match="10 of 20 rows"):
        persist_shard(build, 0)


def test_what_a_shard_learnt_is_remembered(build: Build):
    finish(build, 0, [answered(0), rejected(1)], [ClipRecord("x.wav", "1:e", "a" * 64)])
    persist_shard(build, 0)
    keys = [bytes.fromhex(f"{row:064x}") for row in (0, 1)]
    assert kept(build, "outcomes", keys) == keys
    assert kept(build, "clips", [uri_key("x.wav"), uri_key("y.wav")]) == [uri_key("x.wav")]


def test_an_attempt_repeated_writes_the_same_bytes(build: Build):
    first = persist_shard(build, 1)
    assert persist_shard(build, 1) == first


def test_load_says_when_nothing_is_published(tmp_path: Path):
    with pytest.raises(BuildNotFoundError, match="nothing is published"):
        earwitness.load(str(tmp_path))


def test_rejections_hold_the_original_fields_and_the_reason(build: Build):
    files = persist_shard(build, 1).files
    (path,) = [file.path for file in files if file.path.startswith("rejected/")]
    row = json.loads(build.store.read_bytes(path))
    assert row["id"] == 2
    assert row["earwitness"] == {
        "row": 2,
        "stage": "decode",
        "reason": "silent",
        "detail": "silent",
        "transient": False,
    }


COUNTS = st.builds(
    Counts,
    rows=st.integers(0, 10**9),
    answered=st.integers(0, 10**9),
    audio_s=st.integers(0, 10**6).map(float),
    reasons=st.dictionaries(st.sampled_from(["silent", "not_audio"]), st.integers(0, 99)),
)


@given(COUNTS, COUNTS)
def test_adding_ledgers_adds_every_count(one: Counts, other: Counts):
    both = one + other
    assert both == other + one
    assert both.rows == one.rows + other.rows
    for reason in {*one.reasons, *other.reasons}:
        assert both.reasons[reason] == one.reasons.get(reason, 0) + other.reasons.get(reason, 0)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_ledger_balances_only_when_no_row_is_lost(generated: int, reused: int, rejected: int):
    counts = Counts(
        rows=generated + reused + rejected,
        answered=generated + reused,
        generated=generated,
        reused=reused,
        rejected=rejected,
        reasons={"silent": rejected},
    )
    assert counts.balanced
    assert not counts.model_copy(update={"rows": counts.rows + 1}).balanced
    assert not counts.model_copy(update={"reused": reused + 1}).balanced
