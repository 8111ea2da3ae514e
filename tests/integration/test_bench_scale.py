"""The model behind docs/scale.md counts the calls that a build really makes."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import s3fs
from workbench import S3Server, record, tone, write_clip, write_manifest

from earwitness.cache import shared_tables
from earwitness.settings import LayoutSettings
from tests.bench.s3_log import count_calls
from tests.bench.scale_calls import OPERATIONS, Build, Kind, calls

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, LAYOUT = 48, LayoutSettings(name="counted", shard_rows=16, batch_rows=8)
CHANGED = 10


def write_input(server: S3Server, bucket: str, changed: int) -> str:
    folder = server.folder / bucket / "in"
    records = []
    for number in range(ROWS):
        path = f"clips/{number:03d}.wav"
        if not (folder / path).exists():
            write_clip(folder / path, tone(100 + number))
        asked = "What now?" if changed and number % changed == 0 else "What?"
        records.append(record(path, asked, id=number))
    write_manifest(folder / "manifest.jsonl", records)
    return f"s3://{bucket}/in/manifest.jsonl"


@pytest.fixture
def counted(s3: S3Server, build: Callable[..., dict[str, Any]]) -> Callable[[Kind], dict[str, int]]:
    """Runs a build of a kind in a bucket of its own; its calls by operation."""
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(bucket)

    def run(kind: Kind) -> dict[str, int]:
        manifest = write_input(s3, bucket, CHANGED if kind is Kind.CHANGED else 0)
        shared_tables.cache_clear()  # a night later it is another process
        before = len(s3.log_path.read_text())
        build(manifest, f"s3://{bucket}/out", layout=LAYOUT)
        return count_calls(s3.log_path.read_text()[before:])

    return run


def test_the_calls_of_a_build_are_those_of_the_model(counted):
    for kind in (Kind.COLD, Kind.SAME, Kind.CHANGED):
        modelled = Build(ROWS, kind, 16, 8, changed=5 / ROWS, on_pool=False)
        found, told = counted(kind), calls(modelled).of
        for operation in OPERATIONS:
            # batches that end at the same moment list a folder once more or less
            wanted = pytest.approx(told[operation], rel=0.1, abs=3)
            assert found[operation] == wanted, (kind, operation)
