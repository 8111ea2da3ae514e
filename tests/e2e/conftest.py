"""Servers that end-to-end tests share."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import guide
import pytest
from pool import Pool
from postgres import BIN as POSTGRES
from postgres import postgres
from service import GPU_WORKERS, HOUSE, STAND_IN, here, start_default_worker, start_gpu_worker

from earwitness.engine.guardian import start_guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

S3_KEY, S3_SECRET = "key-of-the-tests", "secret-of-the-tests"
"""Words that are found nowhere by chance."""
RCLONE = shutil.which("rclone") or str(Path(sys.executable).parent / "rclone")


@pytest.fixture(scope="session")
def s3_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A real S3 endpoint: the folder behind `s3://bucket`, and the environment that reaches it."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "bucket").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    keys = f"{S3_KEY},{S3_SECRET}"
    # folders are looked at anew: tests make buckets behind its back
    command = [RCLONE, "serve", "s3", "--addr", address, "--auth-key", keys]
    command += ["--dir-cache-time", "100ms", str(folder)]
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
            "AWS_ACCESS_KEY_ID": S3_KEY,
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    )
    server.stop()


@pytest.fixture(scope="session")
def service(
    s3_bucket: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    """Server, pools, deployments, a worker for parents and two with an engine, over S3.

    Set up from nothing by the operating guide's commands. The guide's own `s3://bucket/clips.jsonl`
    is there: the examples. Prefect's runs are in PostgreSQL where there is one, as the guide says:
    SQLite serves three workers badly.
    """
    if not STAND_IN and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    bucket, environment = s3_bucket
    shutil.copy(HOUSE / "examples" / "manifest.jsonl", bucket / "clips.jsonl")
    shutil.copytree(HOUSE / "examples" / "clips", bucket / "clips")
    folder = tmp_path_factory.mktemp("service")
    with (
        postgres(folder / "postgres.log") if POSTGRES else nullcontext() as database,
        Pool(folder, environment, database) as pool,
    ):
        for command in ("python -m deployments.setup", "prefect deploy --all"):
            guide.typed(pool, guide.block(command), here(pool))
        for name in GPU_WORKERS:
            start_gpu_worker(pool, name)
        start_default_worker(pool)
        pool.wait_for_workers()
        yield pool
