"""A stand-in for a machine that loses power: notes what is safe on disk, and dies when told to.

Put before PYTHONPATH, it wraps `os.fsync`, `os.replace`, `os.rename` and `os.mkdir` of a process,
for what lies under one folder, and writes a journal: `tests/chaos/powercut.py` reads there what a
disk may have lost when the power went. At a given entry the process group is killed.
"""

# ruff: noqa: PTH100, PTH110, PTH115, PTH116
# it wraps what pathlib is made of
from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import threading
from typing import Any

JOURNAL = os.environ.get("EARWITNESS_TEST_JOURNAL", "")
UNDER = os.environ.get("EARWITNESS_TEST_UNDER", "")
CUT_AT = int(os.environ.get("EARWITNESS_TEST_CUT_AT", "0"))

_numbers = itertools.count(1)
_lock = threading.Lock()


def _note(**entry: Any) -> int:
    with _lock:
        number = next(_numbers)
        line = json.dumps({"n": number, **entry}).encode() + b"\n"
        journal = os.open(f"{JOURNAL}/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(journal, line)
        os.close(journal)
        if number == CUT_AT:
            os.killpg(0, signal.SIGKILL)
    return number


def _below(path: str) -> bool:
    return path.startswith(UNDER + "/") or path == UNDER


def _wrap_fsync() -> None:
    real = os.fsync

    def fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if not _below(path):
            real(file)
            return
        status = os.fstat(number)
        folder = stat.S_ISDIR(status.st_mode)
        begun = _note(op="sync", path=path, folder=folder, inode=status.st_ino)
        real(file)
        _note(op="synced", begun=begun, size=status.st_size)

    os.fsync = fsync


def _wrap_rename(name: str) -> None:
    real = getattr(os, name)

    def rename(source: Any, target: Any, **folders: Any) -> None:
        path = os.path.abspath(os.fspath(target))
        if folders or not _below(path):
            real(source, target, **folders)
            return
        kept = ""
        with contextlib.suppress(FileNotFoundError):
            kept = f"{JOURNAL}/kept-{os.urandom(6).hex()}"
            os.link(path, kept)
        kept = kept if os.path.exists(kept) else ""
        inode = os.stat(source).st_ino
        begun = _note(op="rename", path=path, inode=inode, kept=kept)
        real(source, target)
        _note(op="renamed", begun=begun)

    setattr(os, name, rename)


def _wrap_mkdir() -> None:
    real = os.mkdir

    def mkdir(path: Any, *mode: Any, **folders: Any) -> None:
        real(path, *mode, **folders)
        made = os.path.abspath(os.fspath(path))
        if not folders and _below(made):
            _note(op="mkdir", path=made)

    os.mkdir = mkdir


if JOURNAL and UNDER:
    _wrap_fsync()
    _wrap_rename("replace")
    _wrap_rename("rename")
    _wrap_mkdir()
