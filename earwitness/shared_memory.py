"""Shared memory that programs we start leave behind when they are killed.

Such memory is a file in `/dev/shm` that outlives its makers. Its name says nothing of whose it is,
so we write down what our processes have while they live, and remove it once nobody has it any more.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RECORD = "shared-memory.jsonl"
"""Name of the file in a scratch folder that lists what its owner's processes have."""

_FOLDER = Path("/dev/shm")  # noqa: S108 - where the system keeps shared memory, not a scratch folder


class MemoryRecord:
    """Lists the shared memory of some processes in their owner's scratch folder.

    Args:
        folder: The scratch folder.
        memory: Where shared memory lies.
    """

    def __init__(self, folder: Path, *, memory: Path = _FOLDER) -> None:
        self._path = folder / RECORD
        self._memory = memory
        # what is there already is somebody else's
        self._known = set(_names(memory))

    def note(self, pids: Iterable[int]) -> None:
        """Write down what these processes have and what is not written down yet.

        Args:
            pids: Living processes.
        """
        new = [name for name in _names(self._memory) if name not in self._known]
        if not new:
            return
        held = {name for pid in pids for name in _held(pid, self._memory)}
        with self._path.open("a", encoding="utf-8") as record:
            for name in new:
                if name in held:
                    inode = (self._memory / name).lstat().st_ino
                    record.write(json.dumps({"name": name, "inode": inode}) + "\n")
                    self._known.add(name)


def release(folder: Path, *, memory: Path = _FOLDER) -> bool:
    """Remove the shared memory that is written down in a scratch folder.

    Args:
        folder: The scratch folder of an owner whose processes have ended.
        memory: Where shared memory lies.

    Returns:
        False where a living process still has some of it, which stays.
    """
    written = [path for path, inode in _written(folder, memory) if _is_ours(path, inode)]
    if not written:
        return True
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - names
    held = {name for pid in pids for name in _held(pid, memory)}
    for path in written:
        if path.name not in held:
            path.unlink(missing_ok=True)
    return held.isdisjoint(path.name for path in written)


def _written(folder: Path, memory: Path) -> Iterator[tuple[Path, int]]:
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):  # a line that was cut by a kill
            one = json.loads(line)
            yield memory / Path(one["name"]).name, int(one["inode"])


def _is_ours(path: Path, inode: int) -> bool:
    """False where it is gone, or another file of the same name or of another user."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (found.st_ino, found.st_uid) == (inode, os.geteuid())


def _names(memory: Path) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in os.scandir(memory) if entry.is_file(follow_symlinks=False)]
    return []


def _held(pid: int, memory: Path) -> Iterator[str]:
    """Names of shared memory that a process has mapped or opened."""
    inside = f"{memory}/"
    with suppress(OSError):  # it ended, or is another user's
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            _, found, name = line.partition(inside)
            if found:
                yield name
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                target = os.readlink(entry.path)  # noqa: PTH115 - text is what is wanted
                if target.startswith(inside):
                    yield target.removeprefix(inside)
