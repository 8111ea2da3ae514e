"""A build over the pool where Prefect's server keeps its runs in PostgreSQL, as in production."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from pool import Pool
from postgres import BIN, postgres
from workbench import Published, record, tone, write_clip, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

SHARDS, SHARD_ROWS = 2, 6
STAND_IN = f"{sys.executable} -m tests.support.standin"

pytestmark = pytest.mark.skipif(
    BIN is None, reason="PostgreSQL is not installed: apt-get install postgresql"
)


def test_a_build_over_the_pool_is_published_and_nothing_is_left(tmp_path: Path):
    clips = [
        write_clip(tmp_path / f"{row}.wav", tone(200 + 10 * row))
        for row in range(SHARDS * SHARD_ROWS)
    ]
    records = [record(clip, id=row) for row, clip in enumerate(clips)]
    manifest, output = write_manifest(tmp_path / "m.jsonl", records), tmp_path / "out"
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    with postgres(tmp_path / "postgres.log") as url:
        with Pool(tmp_path / "pool", database=url) as pool:
            pool.deploy(manifest, output, model)
            pool.start_worker("default", name="parents")
            words = ("--model", model, "--command", STAND_IN)
            gpu = pool.start_worker("gpu", *words, name="gpu-1")
            pool.wait_for_workers()
            run = pool.api.run("build-dataset/adhoc", layout={"shard_rows": SHARD_ROWS})
            said = pool.api.expect(run, "COMPLETED")["message"]
            shards = pool.api.shards(pool.api.get(f"/flow_runs/{run}")["name"])
            gpu.terminate()
            assert gpu.ended() == 0
        assert not (pool.folder / "prefect" / "prefect.db").exists()

    assert f"{SHARDS * SHARD_ROWS} answers" in said
    assert sorted(shards) == list(range(SHARDS))
    assert sorted(Published(output).by_id()) == list(range(len(clips)))
