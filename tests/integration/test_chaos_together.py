"""Several processes at one output: each stopped at its worst moment, and let go on too late.

The processes are held, not timed: an audit hook stops one right before it writes or renames a
file, as if its machine had been asleep, and a later signal lets it go on.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import pytest
from workbench import Published, clip_bytes, record, write_manifest

import earwitness
from earwitness.builds.batch import Decided, write_resolved, write_segment
from earwitness.builds.gc import find_garbage, remove_garbage
from earwitness.builds.layout import FILE_FOLDERS, Build, work_path
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.publish import latest_build, publish_build
from earwitness.errors import EarwitnessError
from earwitness.identity import ModelIdentity
from earwitness.records import Answer, HeardClip, Outcome
from earwitness.settings import BuildSettings, LayoutSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MODEL = ModelIdentity("declared", "stand-in", "")
HEARD = (HeardClip("a" * 64, 1.5, 1.5),)
LIMIT_S = 240

SLEEPER = """
import os, signal, sys
from earwitness.builds.layout import Build
from earwitness.builds.persist import persist_shard
from earwitness.builds.publish import publish_build
uri, work, when, before = sys.argv[1:]
awake = [True]

def sleep_before(event, args):
    path = args[0] if event == "open" else args[1] if event == "os.rename" else ""
    if awake and event == when and before in str(path):
        awake.clear()
        os.kill(os.getpid(), signal.SIGSTOP)

sys.addaudithook(sleep_before)
persist_shard(Build.at(uri), 0) if work == "persist" else publish_build(Build.at(uri))
"""


@contextmanager
def asleep(build: Build, work: str, when: str, before: str) -> Iterator[Callable[[], None]]:
    """A process at work, stopped before a file is written; gives what lets it go on."""
    command = [sys.executable, "-c", SLEEPER, build.uri, work, when, before]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), process.communicate()[1]

    def go_on() -> None:
        os.kill(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err

    try:
        yield go_on
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()


def planned(folder: Path, name: str, rows: int = 3) -> Build:
    records = [record("x.wav", id=row) for row in range(rows)]
    manifest = write_manifest(folder / "manifest.jsonl", records)
    settings = resolve_settings(BuildSettings(manifest=str(manifest), output=str(folder / "out")))
    build = Build(settings.output, name)
    plan_build(build, settings, MODEL, datetime.now(tz=UTC))
    return build


def answer(build: Build, text: str, rows: int = 3) -> None:
    """All answers of a build's one shard, as an attempt leaves them before it persists."""
    said = [
        Decided(
            row, Outcome(f"{row:064x}", Answer(text, "stop", 10, 3), None, HEARD, 256), reused=False
        )
        for row in range(rows)
    ]
    write_resolved(build, 0, [])
    write_segment(build, f"{work_path(0)}/batch-00000-0.parquet", said, [])


def stored(build: Build) -> set[str]:
    return {path for folder in FILE_FOLDERS for path in build.store.sizes(folder)}


def named(build: Build) -> set[str]:
    return {file["path"] for file in build.facts()["files"]}


def test_of_two_builds_that_publish_at_once_the_newer_one_is_the_latest(tmp_path: Path):
    older, newer = planned(tmp_path, "a-1"), planned(tmp_path, "b-2")
    for build in (older, newer):
        answer(build, build.id)
        persist_shard(build, 0)
    with asleep(older, "publish", "os.rename", "latest.json") as go_on:
        publish_build(newer)
        go_on()
    assert latest_build(older.output.root) == newer.id
    assert older.published
    assert set(earwitness.load(older.output.root)["answer"]) == {newer.id}


@pytest.mark.parametrize("moment", ["data/.tmp", "jsonl/.tmp", "receipts/.tmp"])
def test_a_zombie_that_wakes_after_its_shard_was_retried_changes_nothing(
    tmp_path: Path, moment: str
):
    build = planned(tmp_path, "a-1")
    answer(build, "the zombie's")
    with asleep(build, "persist", "open", moment) as go_on:
        answer(build, "the retry's")
        persist_shard(build, 0)
        publish_build(build)
        before = earwitness.load(build.output.root)
        go_on()
    assert set(before["answer"]) == {"the retry's"}
    assert stored(build) == named(build)
    assert earwitness.load(build.output.root).equals(before)
    assert latest_build(build.output.root) == build.id


def test_a_zombie_that_wakes_while_its_build_is_published_changes_nothing(tmp_path: Path):
    build = planned(tmp_path, "a-1")
    answer(build, "the zombie's")
    with asleep(build, "persist", "open", "data/.tmp") as wake_zombie:
        answer(build, "the retry's")
        persist_shard(build, 0)
        with asleep(build, "publish", "os.rename", "build.json") as go_on_publishing:
            wake_zombie()
            # of both: data in two formats, and outcomes; what they know of clips is the same
            assert len(stored(build)) == 7
            go_on_publishing()
    assert stored(build) == named(build)
    assert set(earwitness.load(build.output.root)["answer"]) == {"the retry's"}


def test_two_processes_that_publish_one_build_agree(tmp_path: Path):
    build = planned(tmp_path, "a-1")
    answer(build, "x")
    persist_shard(build, 0)
    with asleep(build, "publish", "os.rename", "build.json") as go_on:
        first = publish_build(build)
        go_on()
    assert build.facts() == first
    assert stored(build) == named(build)


@dataclass
class Collector:
    """Gc at one output over and over, until told to stop."""

    output: Path
    runs: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._collect)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _collect(self) -> None:
        while not self._stop.wait(0.02):
            try:
                remove_garbage(find_garbage(str(self.output), keep=1))
                self.runs += 1
            except EarwitnessError:
                continue  # nothing there yet, or just being removed
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.error = error
                return


def test_gc_over_and_over_while_builds_run_loses_nothing(
    tmp_path: Path, build: Callable[..., dict[str, Any]], web, stand_in
):
    draw = random.Random(5)  # noqa: S311 - tonight's clips
    clips = [web.put(f"/{n}.wav", clip_bytes(tmp_path, 300 + 20 * n)) for n in range(40)]
    layout = LayoutSettings(shard_rows=10, batch_rows=5)
    output = tmp_path / "out"
    with Collector(output) as collector:
        for _ in range(4):
            tonight = draw.sample(range(40), 25)
            manifest = write_manifest(
                tmp_path / "manifest.jsonl", [record(clips[n], id=n) for n in tonight]
            )
            assert build(manifest, output, layout=layout)["answered"] == 25
            assert list(earwitness.load(str(output))["id"]) == tonight
    assert collector.error is None
    assert collector.runs > 4
    asked = stand_in.asked()
    assert build(manifest, output, layout=layout)["reused"] == 25
    assert stand_in.asked() == asked
    pointed = json.loads((output / "latest.json").read_text())["build"]
    assert Published(output).folder.name == pointed
