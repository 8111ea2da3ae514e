"""The kill campaign, in short: a few kills, one power cut, a full disk, a clock that is wrong.

`python -m tests.chaos --only kills` tries them by the hundred.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.chaos import clock, disk
from tests.chaos.builds import ROOT, Layout
from tests.chaos.killing import disturb
from tests.chaos.powercut import STANDIN, Journal, cut_power, read_journal
from tests.chaos.servers import bench

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.servers import Bench

LAYOUT = Layout(rows=200, shard_rows=100, batch_rows=25, clips=32)
ENGINE = ("--latency-s", "0.2", "--slots", "8")
SEED = 2
NUMBERS = {"with servers that are given": 0, "with an engine of its own": 5}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("kills"), LAYOUT, *ENGINE, prefect=prefect_server) as found:
        yield found


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_killed_at_random_instants_a_build_ends_as_if_nothing_had_happened(
    work: Bench, number: int
):
    done = disturb(work, SEED, number, most=2)
    assert done.kills
    assert not done.broken, done


WRITES = """
import sys
from earwitness.storage import Store
store = Store(sys.argv[1])
for path in ("data/shard-00000", "receipts/shard-00000", "latest"):
    store.write_bytes(path, b"whole")
"""


def test_a_file_its_name_and_its_folders_are_safe_before_the_next_file_is_written(tmp_path: Path):
    under = tmp_path / "disk"
    under.mkdir()
    names = {"PYTHONPATH": STANDIN, "EARWITNESS_TEST_JOURNAL": tmp_path}
    env = {**os.environ, **names, "EARWITNESS_TEST_UNDER": under}
    words = [sys.executable, "-c", WRITES, under / "out"]
    subprocess.run(words, env={name: str(env[name]) for name in env}, cwd=ROOT, check=True)
    entries = read_journal(tmp_path).entries
    renamed = [at for at, entry in enumerate(entries) if entry["op"] == "rename"]
    assert len(renamed) == 3
    assert [entry["op"] for entry in entries].count("mkdir") == 3
    for before, at in pairwise(renamed):
        risked = Journal(entries[:at]).names_at_risk()
        assert not [entry["path"] for entry in risked if entry["n"] <= entries[before]["n"]]


def test_after_a_power_cut_no_marker_is_left_without_its_files_and_the_build_ends_alike(
    work: Bench,
):
    held = cut_power(work, seed=SEED, cuts=1)
    assert not held.failed, held.detail


def test_a_full_disk_is_told_in_a_line_and_the_same_command_ends_once_there_is_space(work: Bench):
    if disk.missing():
        pytest.skip(disk.missing())
    held = disk.fill_disks(work, cases=disk.CASES[:1])
    assert not held.failed, held.detail


def test_a_build_planned_a_year_ahead_does_not_keep_the_next_one_from_being_the_latest(work: Bench):
    held = clock.turn_clocks(work, most=1)
    if not held.tried:
        pytest.skip(held.detail)
    assert not held.failed, held.detail
