"""A PostgreSQL server of a test's own, where one is installed."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from workbench import free_port

from deployments.postgres import Cluster, find_programs
from earwitness.engine.guardian import start_guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = find_programs()


@contextmanager
def postgres(log_path: Path) -> Iterator[str]:
    """A PostgreSQL server of our own on loopback; the URL Prefect reaches it by."""
    assert BIN is not None
    port = free_port()
    # not pytest's folder: that one is closed to the other user
    with TemporaryDirectory(prefix="earwitness-postgres-") as folder:
        Path(folder).chmod(0o711)
        cluster = Cluster(Path(folder) / "cluster", BIN)
        cluster.make()
        server = start_guarded(cluster.command(port), log_path=log_path)
        try:
            while not cluster.answers(port):
                assert server.alive(), log_path.read_text()
                time.sleep(0.1)
            yield cluster.url(port)
        finally:
            server.stop()
