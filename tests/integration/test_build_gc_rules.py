"""Gc keeps what is pointed at, held or reused; what goes leaves nothing that points at it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from workbench import record, write_manifest

import earwitness
from earwitness.builds.batch import Decided, write_resolved, write_segment
from earwitness.builds.gc import find_garbage, remove_garbage
from earwitness.builds.layout import Build, shard_path, work_path
from earwitness.builds.lease import lease
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.publish import latest_build, publish_build
from earwitness.builds.sources import outcomes_of
from earwitness.cache import ClipRecord
from earwitness.errors import BuildNotFoundError
from earwitness.identity import ModelIdentity
from earwitness.records import Answer, HeardClip, Outcome, Reason, Rejection, Stage
from earwitness.settings import BuildSettings, LayoutSettings
from earwitness.storage import Store

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.builds.gc import Garbage

HEARD = (HeardClip("a" * 64, 1.5, 1.5),)
SILENT = Rejection(Stage.DECODE, Reason.SILENT, "silent")
LONG_AGO_S = 1_600_000_000


def name(day: int) -> str:
    return f"b-202611{day:02d}T000000Z-aaaaaa"


def said(text: str, max_tokens: int = 256) -> Outcome:
    key = hashlib.sha256(text.encode()).hexdigest()
    return Outcome(key, Answer(text, "stop", 10, 3), None, HEARD, max_tokens)


def planned(folder: Path, rows: int = 1, *, name: str) -> Build:
    records = [record("x.wav", id=row) for row in range(rows)]
    manifest = write_manifest(folder / "manifest.jsonl", records)
    settings = BuildSettings(
        manifest=str(manifest),
        output=str(folder / "out"),
        max_rejected=1,
        layout=LayoutSettings(shard_rows=100),
    )
    build = Build(settings.output, name)
    started = datetime.strptime(name.split("-")[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    model = ModelIdentity("declared", "stand-in", "")
    plan_build(build, resolve_settings(settings), model, started)
    return build


def finish(build: Build, decided: list[Decided], clip_records: list[ClipRecord]) -> None:
    write_resolved(build, 0, [])
    write_segment(build, f"{work_path(0)}/batch-00000-0.parquet", decided, clip_records)
    persist_shard(build, 0)
    publish_build(build)


def publish(folder: Path, day: int, texts: list[str], *, reused: tuple[str, ...] = ()) -> Build:
    """A published build with one shard of answers."""
    build = planned(folder, rows=len(texts), name=name(day))
    rows = [Decided(row, said(text), text in reused) for row, text in enumerate(texts)]
    finish(build, rows, [ClipRecord(str(folder / "x.wav"), "1:e", "a" * 64)])
    return build


def collect(folder: Path, keep: int = 1) -> Garbage:
    garbage = find_garbage(str(folder / "out"), keep=keep)
    assert remove_garbage(garbage)
    return garbage


def known(folder: Path, *texts: str) -> list[str]:
    """Which answers a build planned now would find."""
    keys = [bytes.fromhex(said(text).cache_key) for text in texts]
    asked = planned(folder, name=f"b-20261130T000000Z-{secrets.token_hex(3)}")
    found = outcomes_of(asked).find(keys, 0)
    asked.store.delete_folder("")
    return sorted(row["answer"] for row in found.values())


def days(folder: Path) -> list[int]:
    return sorted(int(path.name[8:10]) for path in (folder / "out/builds").iterdir())


def age(build: Build) -> None:
    for path in build.store.entries():
        os.utime(build.store.uri(path), (LONG_AGO_S, LONG_AGO_S))


def test_the_newest_builds_stay_and_load_and_so_does_the_one_pointed_at(tmp_path: Path):
    for day in range(1, 6):
        publish(tmp_path, day, ["one", f"of day {day}"], reused=("one",) if day > 1 else ())
    rolled_back = {"build": name(2), "planned_at": "2026-11-02T00:00:00+00:00"}
    Store(str(tmp_path / "out")).write_bytes("latest.json", json.dumps(rolled_back).encode())
    garbage = collect(tmp_path, keep=2)
    assert [one.id for one in garbage.builds] == [name(1), name(3)]
    assert garbage.bytes > 0
    assert days(tmp_path) == [2, 4, 5]
    assert list(earwitness.load(str(tmp_path / "out"))["answer"]) == ["one", "of day 2"]
    # what the first build answered was used by all that came after it
    texts = [f"of day {day}" for day in range(1, 6)]
    assert known(tmp_path, "one", *texts) == ["of day 5", "one"]
    assert find_garbage(str(tmp_path / "out"), keep=2).builds == ()


def test_finding_garbage_changes_nothing(tmp_path: Path):
    for day in (1, 2):
        publish(tmp_path, day, [f"of day {day}"])
    store = Store(str(tmp_path / "out"))
    before = store.entries()
    garbage = find_garbage(str(tmp_path / "out"), keep=1)
    assert len(garbage.builds) == 1
    assert store.entries() == before


def test_a_build_that_is_held_stays_whatever_its_age(tmp_path: Path):
    old, _ = publish(tmp_path, 1, ["one"]), publish(tmp_path, 2, ["two"])
    garbage = find_garbage(str(tmp_path / "out"), keep=1)
    with lease(old):
        assert find_garbage(str(tmp_path / "out"), keep=1).builds == ()
        assert not remove_garbage(garbage)  # taken up since it was found
    assert days(tmp_path) == [1, 2]


def test_an_unpublished_build_goes_once_it_is_overtaken_and_left_alone(tmp_path: Path):
    # in this order: the recent one does not reuse the other one
    recent, overtaken = (planned(tmp_path, name=name(day)) for day in (2, 1))
    publish(tmp_path, 3, ["three"])
    ahead = planned(tmp_path, name=name(4))
    age(overtaken)
    age(ahead)
    assert [one.id for one in collect(tmp_path).builds] == [overtaken.id]
    assert recent.store.exists("plan.json")
    assert ahead.store.exists("plan.json")


def test_a_folder_without_a_plan_goes_when_it_is_old(tmp_path: Path):
    for day in (1, 2):
        publish(tmp_path, day, [f"of day {day}"])
    killed = Build(str(tmp_path / "out"), name(3))
    killed.store.write_bytes(shard_path(0), b"{}")
    assert [one.id for one in collect(tmp_path).builds] == [name(1)]
    age(killed)
    assert [one.id for one in collect(tmp_path).builds] == [name(3)]
    assert days(tmp_path) == [2]


def test_what_a_build_that_is_not_published_yet_reuses_stays(tmp_path: Path):
    publish(tmp_path, 1, ["one"])
    running = planned(tmp_path, name=name(2))
    for day in (3, 4):
        publish(tmp_path, day, [f"of day {day}"])
    collect(tmp_path)
    assert days(tmp_path) == [1, 2, 4]
    assert outcomes_of(running).find([bytes.fromhex(said("one").cache_key)], 0)


@pytest.mark.parametrize("left", [("build.json", "data"), ("data",), ()])
def test_a_build_that_a_killed_gc_left_half_removed_goes_next_time(tmp_path: Path, left):
    build, _ = publish(tmp_path, 1, ["one"]), publish(tmp_path, 2, ["two"])
    build.store.write_bytes("gc.json", b"{}")
    build.store.delete(
        path for path in build.store.sizes() if not path.startswith(("gc.json", *left))
    )
    assert [one.why for one in collect(tmp_path).builds] == ["partly removed by an earlier gc"]
    assert days(tmp_path) == [2]


def test_nothing_built_is_an_error(tmp_path: Path):
    with pytest.raises(BuildNotFoundError, match="no build"):
        find_garbage(str(tmp_path))


def test_latest_stays_right_when_only_one_build_is_kept(tmp_path: Path):
    # planned one after the other, the second time by a clock that was set back
    for day in (2, 1):
        publish(tmp_path, day, ["one"])
    collect(tmp_path)
    assert (days(tmp_path), latest_build(str(tmp_path / "out"))) == ([1], name(1))
