"""Which builds gc lets go."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from earwitness.builds.gc import SeenBuild, choose_old
from earwitness.builds.layout import Build
from earwitness.storage import Entry

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86_400.0
LONG_AGO_S = 1_600_000_000


def seen(
    day: int,
    *files: str,
    held: bool = False,
    age_s: float = 2 * DAY_S,
    name: str = "",
    sources: tuple[str, ...] = (),
) -> SeenBuild:
    """A build as a listing would show it."""
    entries = {path: Entry(10, time.time() - age_s) for path in files}
    planned_at = f"2026-11-{day:02d}T00:00:00+00:00" if "plan.json" in files else ""
    build = Build("/nowhere", str(day))
    return SeenBuild(build, entries, planned_at, name=name, sources=sources, held=held)


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


def test_of_each_name_the_newest_stay():
    other = [seen(day, *WHOLE, name="other") for day in (1, 2, 3)]
    assert chosen(*other, *(seen(day, *WHOLE) for day in range(4, 9))) == [1, 4, 5, 6]


def test_what_an_unfinished_build_reuses_stays():
    published = [seen(day, *WHOLE) for day in (1, 2, 3, 4)]
    assert chosen(*published, seen(5, "plan.json", sources=("1", "4"))) == [2]


def test_what_an_old_unfinished_build_reuses_goes_with_it():
    old = seen(2, "plan.json", sources=("1",))
    assert chosen(seen(1, *WHOLE), old, seen(3, *WHOLE), seen(4, *WHOLE)) == [1, 2]


def test_a_build_whose_plan_cannot_be_read_stays():
    unread = seen(1, "build.json")
    assert chosen(unread, seen(2, *WHOLE), seen(3, *WHOLE), seen(4, *WHOLE)) == [2]
