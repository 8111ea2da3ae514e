"""Scratch of the living stays, scratch of the dead goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from earwitness.errors import DiskError
from earwitness.scratch import (
    engine_log,
    make_scratch,
    results_folder,
    scratch_folder,
    sweep_results,
    sweep_scratch,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path))


def test_a_living_owners_folder_is_not_swept(tmp_path: Path):
    folder, lock = make_scratch()
    assert sweep_scratch(tmp_path) == 0
    assert folder.is_dir()
    lock.close()


def test_a_dead_owners_folder_is_swept_by_the_next(tmp_path: Path):
    leave = (
        "from earwitness.scratch import make_scratch; f, l = make_scratch(); import os; os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", leave], check=False)
    (left,) = tmp_path.iterdir()
    with scratch_folder() as mine:
        assert not left.exists()
        assert mine.is_dir()


def test_others_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "earwitness-notes").mkdir()
    (tmp_path / "unrelated").mkdir()
    assert sweep_scratch(tmp_path) == 0
    assert len(list(tmp_path.iterdir())) == 2


REMOVE = """
import os, sys
from earwitness.scratch import make_scratch, remove_scratch
folder, lock = make_scratch()
for name in "abcdef":
    (folder / name).mkdir()
    (folder / name / "clip").write_bytes(b"")
left, unlink = int(sys.argv[1]), os.unlink
def dying(*given, **where):
    global left
    unlink(*given, **where)
    left -= 1
    left or os._exit(1)
os.unlink = dying
remove_scratch(folder)
"""


def test_a_folder_whose_removal_was_killed_halfway_is_swept_by_the_next(tmp_path: Path):
    command = [sys.executable, "-c", REMOVE, "6"]
    assert subprocess.run(command, check=False).returncode == 1
    assert sweep_scratch(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_is_told_by_the_folder_and_the_variable(
    tmp_path: Path, number: int
):
    told = rf"{tmp_path} \(set EARWITNESS_SCRATCH to use another one\).* run again"
    with pytest.raises(DiskError, match=told), scratch_folder():
        raise OSError(number, "the disk's own words")


def test_nobody_else_may_read_scratch():
    with scratch_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0


def test_old_engine_logs_are_removed_and_new_ones_are_nobody_elses(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = engine_log().parent
    for number in range(40):
        (folder / f"20200101T0000{number:02d}-1.log").touch()
    assert not engine_log().exists()
    assert len(list(folder.iterdir())) == 19
    assert folder.stat().st_mode & 0o077 == 0


def test_old_result_objects_are_removed_and_new_ones_stay(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = results_folder()
    (folder / "old").write_text("{}")
    os.utime(folder / "old", (0, 0))
    (folder / "new").write_text("{}")
    assert sweep_results(folder, older_than_s=3600) == 1
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert folder.stat().st_mode & 0o077 == 0
