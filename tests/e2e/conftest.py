"""Servers that end-to-end tests share."""

from __future__ import annotations

import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from earwitness.engine.guardian import start_guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

RCLONE = shutil.which("rclone") or str(Path(sys.executable).parent / "rclone")


@pytest.fixture(scope="session")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A real S3 endpoint: the folder behind `s3://bucket`, and the environment that reaches it."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [RCLONE, "serve", "s3", "--addr", address, "--auth-key", "key,secret", str(folder)]
    server = start_guarded(command, log_path=folder.parent / "s3.log")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://{address}", timeout=2)
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.1)
    yield (
        folder / "bucket",
        {
            "AWS_ENDPOINT_URL": f"http://{address}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    )
    server.stop()
