"""Local folders for what is under way, and engines' logs; what is left over is swept."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

SCRATCH_VARIABLE = "EARWITNESS_SCRATCH"
"""Environment variable: the folder scratch folders are made in (default: the system's own)."""

_PREFIX = "earwitness-"
_LOCK = "owner.lock"
_LOGS_KEPT = 20


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
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def make_scratch() -> tuple[Path, IO[str]]:
    """A scratch folder of our own, readable by nobody else; folders of dead owners are removed."""
    root = scratch_root()
    sweep_scratch(root)
    # under a name that nobody sweeps until it is locked
    made = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=root))
    lock = (made / _LOCK).open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return made.rename(root / made.name[1:]), lock


def engine_log() -> Path:
    """A new file for an engine's output, readable by its owner alone; old ones are removed.

    It outlives the build, so that what an engine died of can be read; the newest few are kept.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "earwitness" / "engine-logs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs = sorted(folder.glob("*.log"), key=lambda path: path.name)
    for old in logs[: -_LOGS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"


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
            with lock_path.open("w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock_path.parent, ignore_errors=True)
                swept += 1
        except OSError:
            continue  # its owner lives, or it is another user's
    return swept
