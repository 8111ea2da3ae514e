"""No process outlives its owner, however the owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from earwitness.engine.guardian import start_guarded

# a server like vLLM: a leader, a child, and a grandchild in a session of its own
TREE = """
import os, subprocess, sys, time
folder, depth = sys.argv[1], int(sys.argv[2])
open(f"{folder}/{os.getpid()}.pid", "w").close()
if depth:
    subprocess.Popen(
        [sys.executable, __file__, folder, str(depth - 1)], start_new_session=depth == 1
    )
time.sleep(600)
"""
OWNER = """
import sys, time
from pathlib import Path
from earwitness.engine.guardian import start_guarded
start_guarded(sys.argv[2:], log_path=Path(sys.argv[1]))
time.sleep(600)
"""


@pytest.fixture
def tree(tmp_path):
    script = tmp_path / "tree.py"
    script.write_text(TREE)
    pids = tmp_path / "pids"
    pids.mkdir()
    return [sys.executable, str(script), str(pids), "2"], pids


def wait_until(condition, timeout_s=15.0):
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.02)


def pids_of(folder):
    return [int(path.stem) for path in folder.glob("*.pid")]


def living(folder):
    found = []
    for pid in pids_of(folder):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state not in "ZX":
            found.append(pid)
    return found


def test_stop_ends_the_whole_tree_before_it_returns(tree, tmp_path):
    command, pids = tree
    guarded = start_guarded(command, log_path=tmp_path / "log")
    wait_until(lambda: len(pids_of(pids)) == 3)
    guarded.stop()
    assert living(pids) == []
    assert not guarded.alive()


def test_an_owner_killed_outright_leaves_nothing_behind(tree, tmp_path):
    command, pids = tree
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / "log"), *command])
    wait_until(lambda: len(pids_of(pids)) == 3)
    owner.kill()
    owner.wait()
    wait_until(lambda: living(pids) == [])


def test_the_leaders_death_ends_the_others_at_once(tree, tmp_path):
    command, pids = tree
    guarded = start_guarded(command, log_path=tmp_path / "log")
    wait_until(lambda: len(pids_of(pids)) == 3)
    leader = next(
        pid
        for pid in pids_of(pids)
        if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == guarded.pid
    )
    os.kill(leader, signal.SIGKILL)
    wait_until(lambda: not guarded.alive(), timeout_s=3)
    assert living(pids) == []
    assert guarded.returncode == 128 + signal.SIGKILL


def test_a_guardian_killed_outright_is_cleaned_up_after_by_stop(tmp_path):
    guarded = start_guarded(["sh", "-c", "sleep 601 & sleep 602 & wait"], log_path=tmp_path / "log")
    time.sleep(0.3)
    os.kill(guarded.pid, signal.SIGKILL)
    guarded.stop()
    listed = ["ps", "-e", "-o", "sid=,stat="]
    found = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    living_sessions = [line.split()[0] for line in found.splitlines() if "Z" not in line]
    assert str(guarded.pid) not in living_sessions


def test_the_exit_status_is_the_commands(tmp_path):
    guarded = start_guarded(["sh", "-c", "echo said; exit 7"], log_path=tmp_path / "log")
    wait_until(lambda: not guarded.alive())
    assert guarded.returncode == 7
    assert (tmp_path / "log").read_text() == "said\n"


def test_a_command_that_ends_at_once_is_not_missed(tmp_path):
    started = [start_guarded(["false"], log_path=tmp_path / "log") for _ in range(10)]
    wait_until(lambda: not any(guarded.alive() for guarded in started))
    assert {guarded.returncode for guarded in started} == {1}


def test_a_command_that_ignores_the_polite_signal_is_killed(tmp_path):
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)"
    command = [sys.executable, "-c", script + "; time.sleep(600)"]
    guarded = start_guarded(command, log_path=tmp_path / "log")
    wait_until(lambda: "up" in (tmp_path / "log").read_text())
    guarded.stop()
    assert guarded.returncode == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_says_so_in_the_log(tmp_path):
    guarded = start_guarded(["/no/such/command"], log_path=tmp_path / "log")
    wait_until(lambda: not guarded.alive())
    assert guarded.returncode == 127
    assert "No such file or directory" in (tmp_path / "log").read_text()


def test_environment_is_added_to_ours(tmp_path):
    guarded = start_guarded(
        ["sh", "-c", "echo $ADDED ${PATH:+path}"], log_path=tmp_path / "log", env={"ADDED": "yes"}
    )
    wait_until(lambda: not guarded.alive())
    assert (tmp_path / "log").read_text() == "yes path\n"
