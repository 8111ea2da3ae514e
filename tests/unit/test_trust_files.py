"""What others put where they may write does not lead us anywhere; what we write is ours alone."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from earwitness.engine.guardian import start_guarded
from earwitness.scratch import engine_log, make_scratch, results_folder, sweep_scratch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _lenient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No umask helps here."""
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_scratch_logs_and_results_are_nobody_elses_whatever_the_umask():
    folder, lock = make_scratch()
    assert mode(folder) == 0o700
    assert mode(engine_log().parent) == 0o700
    assert mode(results_folder()) == 0o700
    lock.close()


def test_folders_that_were_left_open_are_closed():
    for folder in (engine_log().parent, results_folder()):
        folder.chmod(0o777)
    assert mode(engine_log().parent) == 0o700
    assert mode(results_folder()) == 0o700


def test_a_lock_that_links_elsewhere_is_not_followed(tmp_path: Path):
    """In /tmp anyone may make a folder that looks like ours."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    planted = tmp_path / "scratch" / "earwitness-planted"
    planted.mkdir(parents=True)
    (planted / "owner.lock").symlink_to(precious)
    assert sweep_scratch(planted.parent) == 0
    assert precious.read_text() == "kept"
    assert planted.exists()


def test_a_folder_that_is_a_link_is_not_swept(tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").write_text("")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "earwitness-planted").symlink_to(elsewhere)
    assert sweep_scratch(tmp_path / "scratch") == 0
    assert (elsewhere / "owner.lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_another_users_folder_is_left_alone(tmp_path: Path):
    theirs = tmp_path / "scratch" / "earwitness-theirs"
    theirs.mkdir(parents=True)
    (theirs / "owner.lock").write_text("")
    os.chown(theirs, 12345, 12345)
    assert sweep_scratch(theirs.parent) == 0


def test_what_an_engine_creates_and_prints_is_nobody_elses(tmp_path: Path):
    log = tmp_path / "log"
    log.touch()  # one that was left open to all
    made = tmp_path / "made"
    guarded = start_guarded(["sh", "-c", f"echo said; touch {made}"], log_path=log, private=True)
    assert guarded.wait() == 0
    assert log.read_text() == "said\n"
    assert (mode(log), mode(made)) == (0o600, 0o600)


def test_an_engines_log_does_not_go_where_a_link_leads(tmp_path: Path):
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="log"):
        start_guarded(["true"], log_path=tmp_path / "log")
    assert not (tmp_path / "elsewhere").exists()
