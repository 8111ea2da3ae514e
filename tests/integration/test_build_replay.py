"""What failed for a passing reason is asked again by its reason, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from test_cli_build import run
from workbench import Published, WebServer, clip_bytes, record, write_manifest

import earwitness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from workbench import StandIn

ROWS = 12
SLOW = {3, 8}


@pytest.fixture(scope="module")
def slow_night(
    tmp_path_factory: pytest.TempPathFactory, stand_in: StandIn, prefect_server: str
) -> Iterator[tuple[Path, WebServer, tuple[Any, ...]]]:
    """A build two of whose clips never came; its folder, their server, and how it was built."""
    assert prefect_server  # commands find its address in the environment
    folder = tmp_path_factory.mktemp("slow")
    with WebServer() as web:
        clips = [web.put(f"/{row}.wav", clip_bytes(folder, 300 + 20 * row)) for row in range(ROWS)]
        records = [record(clips[row], id=row) for row in range(ROWS)]
        manifest = write_manifest(folder / "m.jsonl", records)
        how = ("--engine", stand_in.url, "--clip-timeout-s", 2, "--no-print")
        web.held = {f"/{row}.wav" for row in SLOW}
        status, _, err = run("build", manifest, folder / "out", *how, env=impatient())
        assert status == 0, err
        yield folder, web, how
        web.held.clear()


@pytest.fixture
def timed_out(slow_night: tuple[Path, WebServer, Any], tmp_path: Path) -> tuple[Path, WebServer]:
    folder, web, _ = slow_night
    shutil.copytree(folder / "out", tmp_path / "out")
    web.held = {f"/{row}.wav" for row in SLOW}
    return tmp_path / "out", web


def impatient() -> dict[str, str]:
    return {**os.environ, "EARWITNESS_STORAGE_PATIENCE_S": "0.5"}


def reasons(out: Path) -> dict[int, str]:
    return {row["id"]: row["earwitness"]["reason"] for row in Published(out).rejections()}


def test_clips_that_came_too_late_are_rejected_as_passing(timed_out: tuple[Path, WebServer]):
    out, _ = timed_out
    assert reasons(out) == dict.fromkeys(SLOW, "fetch_timeout")
    assert all(row["earwitness"]["transient"] for row in Published(out).rejections())
    assert sorted(Published(out).by_id()) == sorted(set(range(ROWS)) - SLOW)


def test_retry_with_their_reason_asks_those_rows_alone_in_a_new_build_over_the_same_plan(
    timed_out: tuple[Path, WebServer], stand_in: StandIn
):
    out, web = timed_out
    before = Published(out).folder
    data = {path: path.read_bytes() for path in before.rglob("*") if path.is_file()}
    plan = json.loads((before / "plan.json").read_text())
    web.held.clear()
    downloads, asked = web.downloads.copy(), stand_in.asked()
    status, _, err = run("retry", out, "--reason", "fetch_timeout", "--engine", stand_in.url)
    assert status == 0, err

    after = Published(out)
    assert after.folder != before
    again = json.loads((after.folder / "plan.json").read_text())
    assert again["shards"] == plan["shards"]
    assert set((web.downloads - downloads).elements()) == {f"/{row}.wav" for row in SLOW}
    assert stand_in.asked() - asked == len(SLOW)
    assert sorted(after.by_id()) == list(range(ROWS))
    assert after.rejections() == []
    assert list(earwitness.load(str(out))["id"]) == list(range(ROWS))
    # what was published stays as it was
    assert {path: path.read_bytes() for path in data} == data


def test_rows_that_fail_again_stay_rejected_and_the_others_move_over(
    timed_out: tuple[Path, WebServer], stand_in: StandIn
):
    out, web = timed_out
    web.held = {"/8.wav"}
    words = ("retry", out, "--reason", "fetch_timeout", "--engine", stand_in.url)
    status, _, err = run(*words, env=impatient())
    assert status == 0, err
    assert reasons(out) == {8: "fetch_timeout"}
    assert 3 in Published(out).by_id()


def test_the_next_build_asks_them_again_by_itself(
    timed_out: tuple[Path, WebServer], slow_night: tuple[Path, WebServer, Any], stand_in: StandIn
):
    out, web = timed_out
    folder, _, how = slow_night
    web.held.clear()
    asked = stand_in.asked()
    status, _, err = run("build", folder / "m.jsonl", out, *how)
    assert status == 0, err
    assert stand_in.asked() - asked == len(SLOW)
    assert reasons(out) == {}
