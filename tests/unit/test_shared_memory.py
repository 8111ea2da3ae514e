"""Shared memory of the dead is removed; that of the living, and what is not ours, stays."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from earwitness.scratch import make_scratch, sweep_scratch
from earwitness.shared_memory import RECORD, MemoryRecord, release

if TYPE_CHECKING:
    from collections.abc import Iterator

MAPS = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(file, 4096)
mapped = mmap.mmap(file, 4096)
os.close(file)
print("mapped", flush=True)
sys.stdin.read()
"""


@contextmanager
def mapping(path: Path) -> Iterator[int]:
    """A process that has a file mapped; gives its id."""
    command = [sys.executable, "-c", MAPS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_what_our_dead_processes_had_is_removed(memory: Path, scratch: Path):
    record = MemoryRecord(scratch, memory=memory)
    with mapping(memory / "psm_1") as pid:
        record.note([pid])
    assert release(scratch, memory=memory)
    assert list(memory.iterdir()) == []


def test_what_a_living_process_has_stays(memory: Path, scratch: Path):
    record = MemoryRecord(scratch, memory=memory)
    with mapping(memory / "psm_1") as pid:
        record.note([pid])
        assert not release(scratch, memory=memory)
        assert (memory / "psm_1").exists()


def test_what_other_processes_had_stays(memory: Path, scratch: Path):
    record = MemoryRecord(scratch, memory=memory)
    with mapping(memory / "psm_1"):
        record.note([os.getpid()])
    assert release(scratch, memory=memory)
    assert (memory / "psm_1").exists()


def test_what_was_there_before_our_processes_stays(memory: Path, scratch: Path):
    (memory / "psm_1").write_bytes(b"\0" * 4096)
    record = MemoryRecord(scratch, memory=memory)
    with mapping(memory / "psm_1") as pid:
        record.note([pid])
    assert release(scratch, memory=memory)
    assert (memory / "psm_1").exists()


def test_another_file_under_the_same_name_stays(memory: Path, scratch: Path):
    record = MemoryRecord(scratch, memory=memory)
    with mapping(memory / "psm_1") as pid:
        record.note([pid])
    (memory / "psm_1").rename(memory / "kept")
    (memory / "psm_1").write_bytes(b"new")
    assert release(scratch, memory=memory)
    assert (memory / "psm_1").read_bytes() == b"new"


@pytest.mark.parametrize("line", ["", "{", "[]", '{"name": "../out", "inode": 1}', '{"name": 3}'])
def test_a_record_that_a_kill_cut_or_a_stranger_wrote_harms_nothing(
    memory: Path, scratch: Path, line: str
):
    (scratch / RECORD).write_text(line + "\n")
    (memory.parent / "out").write_text("somebody's")
    assert release(scratch, memory=memory)
    assert (memory.parent / "out").exists()


LEAVE = """
import mmap, os, sys
from earwitness.scratch import make_scratch
from earwitness.shared_memory import MemoryRecord
folder, lock = make_scratch()
record = MemoryRecord(folder)
name = f"/dev/shm/earwitness-test-{os.getpid()}"
file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(file, 4096)
mapped = mmap.mmap(file, 4096)
record.note([os.getpid()])
print(name, flush=True)
os._exit(9)
"""


def test_the_sweep_of_a_dead_owners_scratch_takes_its_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path))
    command = [sys.executable, "-c", LEAVE]
    left = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    assert Path(left).exists()
    assert sweep_scratch(tmp_path) == 1
    assert not Path(left).exists()


def test_a_dead_owners_scratch_stays_until_its_processes_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path))
    folder, lock = make_scratch()
    record = MemoryRecord(folder)
    path = Path(f"/dev/shm/earwitness-test-{os.getpid()}")
    with mapping(path) as pid:
        record.note([pid])
        lock.close()  # its owner is dead, and what it started still ends
        assert sweep_scratch(tmp_path) == 0
        assert folder.exists()
        assert path.exists()
    assert sweep_scratch(tmp_path) == 1
    assert not path.exists()
