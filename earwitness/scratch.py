"""Local folders for what is under way, and engines' logs; what is left over is swept."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from earwitness.errors import disk_error
from earwitness.shared_memory import release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

SCRATCH_VARIABLE = "EARWITNESS_SCRATCH"
"""Environment variable: the folder scratch folders are made in (default: the system's own)."""

_PREFIX = "earwitness-"
_LOCK = "owner.lock"
_LOGS_KEPT = 20
_LONGEST_SOCKET_FOLDER = 107 - len("/") - 36
"""A socket's address has 107 bytes at most; the longest names of sockets are UUIDs."""


def scratch_root() -> Path:
    """Where scratch folders are made."""
    root = Path(os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is being written; what a killed process leaves is swept by the next."""
    folder, lock = make_scratch()
    try:
        with scratch_errors():
            yield folder
    finally:
        remove_scratch(folder)
        lock.close()


def remove_scratch(folder: Path) -> None:
    """Remove a scratch folder, its lock last: when killed on the way, the next sweep goes on."""
    release(folder)
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def make_scratch(root: Path | None = None) -> tuple[Path, IO[str]]:
    """A scratch folder of our own, readable by nobody else; folders of dead owners are removed.

    Args:
        root: Where it is made. Default: where scratch folders are.

    Returns:
        The folder, and the lock that says that its owner lives.
    """
    with scratch_errors():
        root = root or scratch_root()
        for swept in {root, temporary_root()}:
            sweep_scratch(swept)
        # under a name that nobody sweeps until it is locked
        made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=root))
        lock = (made / _LOCK).open("w", encoding="utf-8")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return made.rename(root / made.name[1:]), lock


def temporary_root() -> Path:
    """The system's folder for temporary files: short enough a path for sockets."""
    return Path(tempfile.gettempdir())


def takes_sockets(folder: Path) -> bool:
    """True where sockets fit into a folder: their addresses have a limit."""
    return len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER


@contextmanager
def scratch_errors() -> Iterator[None]:
    """Tell of a full or read-only disk by the scratch folder's name, and how to name another."""
    try:
        yield
    except OSError as error:
        root = os.environ.get(SCRATCH_VARIABLE) or tempfile.gettempdir()
        where = f"the scratch folder {root} (set {SCRATCH_VARIABLE} to use another one)"
        full = disk_error(error, where)
        if full is not None:
            raise full from error
        raise


def engine_log() -> Path:
    """A new file for an engine's output, readable by its owner alone; old ones are removed.

    It outlives the build, so that what an engine died of can be read; the newest few are kept.
    """
    folder = _state_folder("engine-logs")
    logs = sorted(folder.glob("*.log"), key=lambda path: path.name)
    for old in logs[: -_LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"


def results_folder() -> Path:
    """Where a worker's flow runs keep Prefect's result objects, readable by their owner alone."""
    return _state_folder("results")


def sweep_results(folder: Path, *, older_than_s: float) -> int:
    """Remove result objects that no retry will look for any more.

    Args:
        folder: Where they lie.
        older_than_s: Age from which on they go.

    Returns:
        How many were removed.
    """
    oldest_s = time.time() - older_than_s
    swept = 0
    for path in folder.rglob("*"):
        try:
            if path.is_file() and path.stat().st_mtime < oldest_s:
                path.unlink()
                swept += 1
        except OSError:
            continue  # another worker of this machine was faster
    return swept


def _state_folder(name: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "earwitness" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _is_own_folder(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def sweep_scratch(root: Path) -> int:
    """Remove scratch folders whose owner is gone.

    Args:
        root: Where scratch folders are made.

    Returns:
        How many were removed.
    """
    swept = 0
    for lock_path in root.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            # everyone may make folders there: what is another's, or a link, is not touched
            if not _is_own_folder(lock_path.parent):
                continue
            with os.fdopen(os.open(lock_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not release(lock_path.parent):
                    continue  # processes of its owner are still ending
                remove_scratch(lock_path.parent)
                swept += 1
        except OSError:
            continue  # its owner lives, or it is another user's
    return swept
