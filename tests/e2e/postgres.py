"""A PostgreSQL server of a test's own, where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from workbench import free_port

from earwitness.engine.guardian import start_guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

# Debian keeps the server's programs off the PATH
FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
FOUND = shutil.which("initdb")
BIN = FOLDERS[-1] if FOLDERS else Path(FOUND).parent if FOUND else None


@contextmanager
def postgres(log_path: Path) -> Iterator[str]:
    """A PostgreSQL server of our own on loopback; the URL Prefect reaches it by."""
    assert BIN is not None
    port = str(free_port())
    # not pytest's folder: that one is closed to the other user
    with TemporaryDirectory(prefix="earwitness-postgres-") as data:
        user = []
        if os.geteuid() == 0:  # it refuses to run as root
            owner = pwd.getpwnam("postgres")
            os.chown(data, owner.pw_uid, owner.pw_gid)
            user = ["runuser", "-u", "postgres", "--"]
        made = [*user, str(BIN / "initdb"), "-D", data, "-A", "trust", "-U", "prefect", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, cwd="/")
        command = [*user, str(BIN / "postgres"), "-D", data, "-k", data]
        server = start_guarded([*command, "-h", "127.0.0.1", "-p", port], log_path=log_path)
        try:
            answers = [str(BIN / "pg_isready"), "-h", "127.0.0.1", "-p", port]
            while subprocess.run(answers, check=False, capture_output=True).returncode != 0:
                assert server.alive(), log_path.read_text()
                time.sleep(0.1)
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            server.stop()
