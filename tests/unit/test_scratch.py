"""Scratch of the living stays, scratch of the dead goes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from earwitness.scratch import engine_log, make_scratch, scratch_folder, sweep_scratch

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
