"""The Prefect API of a build: its own comes back when it dies, a given one is missed by name."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.temporary_server import prefect_api
from earwitness.errors import FatalError

if TYPE_CHECKING:
    from pathlib import Path

    from workbench import WebServer

KILLED = """
import os, signal, sys, time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from deployments.temporary_server import answers, prefect_api

def servers(port):
    for folder in Path("/proc").glob("[0-9]*"):
        words = []
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\\0")
        if b"uvicorn" in words and port in words and b"-I" not in words:
            yield int(folder.name)

with prefect_api() as address:
    health, port = f"{address}/health", str(urlsplit(address).port).encode()
    (dies,) = servers(port)
    os.kill(dies, signal.SIGKILL)
    limit = time.monotonic() + 180
    while dies in servers(port) or not answers(health):
        assert time.monotonic() < limit
        time.sleep(0.1)
    (lives,) = servers(port)
assert lives != dies
assert not answers(health)
print("back")
"""


def test_a_server_of_the_builds_own_that_dies_is_started_again(tmp_path: Path):
    env = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path / "home"), "EARWITNESS_SCRATCH": str(tmp_path / "s")}
    command = [sys.executable, "-c", KILLED]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.stdout == "back\n", ended.stderr
    assert list((tmp_path / "s").iterdir()) == []


def test_a_given_server_that_went_away_is_told_by_its_address(web: WebServer):
    web.put("/api/health", b"true")
    with temporary_settings({PREFECT_API_URL: f"{web.url}/api"}):
        told = pytest.raises(FatalError, match=rf"{web.url}/api stopped answering")
        with told, prefect_api():
            raise httpx.ConnectError("refused")
