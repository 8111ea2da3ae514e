"""After gc the builds that stay load, and building again asks nothing; a kill costs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import s3fs
from typer.testing import CliRunner
from workbench import WebServer, clip_bytes, record, tone, write_clip, write_manifest

import earwitness
from cli import main as cli
from earwitness.settings import LayoutSettings
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

LAYOUT = LayoutSettings(shard_rows=6, batch_rows=4)
KILLS = 16
"""File operations between one kill of gc and the next one tried."""

KILL_EVERY = """
import os, shutil, sys
import earwitness.builds.gc as gc, earwitness
source, folder, step = sys.argv[1], sys.argv[2], int(sys.argv[3])

def names(output):
    return sorted(os.path.relpath(os.path.join(at, file), output)
                  for at, _, files in os.walk(output) for file in files
                  # strays among these go when they are old
                  if not file.startswith(".tmp-"))

def collect(output, last):
    done = 0
    def count(event, _):
        nonlocal done
        if event in {"os.remove", "os.rename", "os.rmdir"}:
            done += 1
            if done > last:
                os._exit(9)
    sys.addaudithook(count)
    gc.remove_garbage(gc.find_garbage(output, keep=1))

def alone(work, *given):
    child = os.fork()
    if not child:
        try:
            work(*given)
            os._exit(0)
        except BaseException as error:
            print(type(error), error, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def check(output, expected):
    from earwitness.builds.layout import Build
    from earwitness.builds.publish import latest_build
    from earwitness.cache import StoredTable
    frame = earwitness.load(output)
    build = Build(output, latest_build(output))
    keys = [bytes.fromhex(key) for key in frame["earwitness.cache_key"]]
    found = {row["key"] for row in StoredTable(build.store, "outcomes").find(keys)}
    assert found == set(keys)
    for name in os.listdir(os.path.join(output, "builds")):
        other = Build(output, name)
        if other.published:  # then it is whole
            earwitness.load(output, name)
        elif other.store.exists("plan.json"):
            raise AssertionError(f"{name} looks unfinished")
    if expected is not None:
        assert names(output) == expected, set(names(output)) ^ set(expected)

whole = os.path.join(folder, "whole")
shutil.copytree(source, whole)
assert alone(collect, whole, 10**9) == 0
expected = names(whole)
last, killed = 0, True
while killed:
    output = os.path.join(folder, f"at-{last}")
    shutil.copytree(source, output)
    killed = alone(collect, output, last) == 9
    assert alone(check, output, None) == 0, f"after a kill at {last}"
    assert alone(collect, output, 10**9) == 0
    assert alone(check, output, expected) == 0, f"after a kill at {last} and another gc"
    shutil.rmtree(output)
    last += step
print("killed", last // step - 1)
"""


def gc(output: Path | str, *words: str) -> Result:
    told = CliRunner().invoke(cli.app, ["gc", str(output), *words], env={"COLUMNS": "300"})
    assert told.exit_code == 0, told.output
    return told


@pytest.fixture(scope="module")
def nights(
    tmp_path_factory: pytest.TempPathFactory, build: Callable[..., Any]
) -> Iterator[tuple[Path, WebServer]]:
    """Three nights: clips come and go; one is silent, one is missing."""
    folder = tmp_path_factory.mktemp("nights")
    with WebServer() as web:
        clips = [web.put(f"/{n}.wav", clip_bytes(folder, 300 + 20 * n)) for n in range(12)]
        silent = web.put("/silent.wav", write_clip(folder / "s", tone(1) * 0).read_bytes())
        always = [record(silent, id=90), record(f"{web.url}/none.wav", id=91)]
        for night in range(3):
            todays = [record(clips[n], id=n) for n in range(3 * night, 3 * night + 6)]
            manifest = write_manifest(folder / "manifest.jsonl", [*todays, *always])
            build(manifest, folder / "out", layout=LAYOUT)
        yield folder, web


@pytest.fixture
def night(nights: tuple[Path, WebServer], tmp_path: Path) -> tuple[Path, Path, WebServer]:
    folder, web = nights
    shutil.copytree(folder / "out", tmp_path / "out")
    return folder / "manifest.jsonl", tmp_path / "out", web


def test_after_gc_the_newest_builds_load_and_building_again_asks_nothing(night, build, stand_in):
    manifest, output, web = night
    before = earwitness.load(str(output))
    told = gc(output, "--keep", "2")
    assert "1 of 3 to be removed" in told.stdout
    assert len(list((output / "builds").iterdir())) == 2
    assert earwitness.load(str(output)).equals(before)
    asked, fetched = stand_in.asked(), web.downloads.copy()
    counts = build(manifest, output, layout=LAYOUT)
    assert (stand_in.asked() - asked, web.downloads - fetched) == (0, {})
    assert counts["reused"] == counts["answered"] == len(before)
    assert "0 of 3 to be removed" in gc(output).stdout


def test_a_dry_run_tells_the_same_and_removes_nothing(night):
    _, output, _ = night
    there = sorted(output.rglob("*"))
    dry = gc(output, "--keep", "1", "--dry-run").stdout
    assert sorted(output.rglob("*")) == there
    assert dry == gc(output, "--keep", "1").stdout + "nothing was removed (--dry-run)\n"
    assert "2 of 3 to be removed" in dry


def test_a_gc_killed_anywhere_harms_nothing_and_the_next_one_ends_it(night, tmp_path):
    _, output, _ = night
    (tmp_path / "kills").mkdir()
    command = [sys.executable, "-c", KILL_EVERY, str(output), str(tmp_path / "kills"), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 3


def test_gc_on_object_storage(s3, build, stand_in, tmp_path):
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(bucket)
    output = f"s3://{bucket}/out"
    clips = [write_clip(tmp_path / f"{n}.wav", tone(300 + 20 * n)) for n in range(6)]
    for night in range(3):
        rows = [record(clip, id=n) for n, clip in enumerate(clips[night : night + 3])]
        manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
        build(manifest, output, layout=LAYOUT)
    folder = s3.folder / bucket / "out"
    store = Store(output)
    killed = "builds/b-20200101T000000Z-aaaaaa/plan/shard-00000.jsonl"
    store.write_bytes(killed, b"{}")
    assert abs(store.entries()[killed].modified_s - time.time()) < 60
    gc(output, "--keep", "1")
    assert store.exists(killed)
    told = gc(output, "--keep", "1", "--unpublished-after-h", "0").stdout
    assert "its planning did not finish" in told
    assert len(list((folder / "builds").glob("*/build.json"))) == 1
    assert not store.exists(killed)
    asked = stand_in.asked()
    build(manifest, output, layout=LAYOUT)
    assert stand_in.asked() == asked
    assert list(earwitness.load(output)["id"]) == [0, 1, 2]
