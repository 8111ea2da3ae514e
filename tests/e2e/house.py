"""A service to build with: clips that fail when told to, builds of them, what they left."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect_api import FINAL
from service import ENGINE
from workbench import Published, WebServer, clip_bytes, record, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from engines import Engines
    from pool import Pool

SHARDS, SHARD_ROWS, BATCH_ROWS = 2, 20, 10
ROWS = SHARDS * SHARD_ROWS
LAYOUT = {"shard_rows": SHARD_ROWS, "batch_rows": BATCH_ROWS}
LIMIT_S = 300


@dataclass(frozen=True)
class House:
    """A service, and a web server whose clips a manifest on S3 names."""

    pool: Pool
    web: WebServer
    engines: Engines
    bucket: Path
    folder: Path

    def write(self, name: str, rows: int) -> str:
        """A manifest whose clips, one a row, are at `/<name>/<row>.wav`."""
        records = []
        for row in range(rows):
            url = self.web.put(f"/{name}/{row}.wav", clip_bytes(self.folder, 200 + 10 * row))
            records.append(record(url, id=row))
        return str(write_manifest(self.folder / f"{name}.jsonl", records))

    def start(self, deployment: str, manifest: str, output: str, **settings: Any) -> str:
        # builds are compared byte for byte
        sampling = {"seed": 1}
        given = {"engine": ENGINE, "layout": LAYOUT, "max_tokens": 24, "sampling": sampling}
        given |= settings
        return self.pool.api.run(deployment, manifest=manifest, output=output, **given)

    def name(self, run: str) -> str:
        return str(self.pool.api.get(f"/flow_runs/{run}")["name"])

    def published(self, output: str) -> Published:
        return Published(self.bucket / output.removeprefix("s3://bucket/"))

    def expect(self, run: str, kind: str) -> dict[str, Any]:
        """Waits for a run's end, and meanwhile gets to know the engines its shards ask."""
        limit = time.monotonic() + LIMIT_S
        while self.pool.api.state(run)["type"] not in FINAL and time.monotonic() < limit:
            self.engines.look()
            time.sleep(0.3)
        return self.pool.api.expect(run, kind, limit_s=0)


def facts(published: Published) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((published.folder / "build.json").read_bytes())
    return found


def digests(published: Published) -> dict[str, str]:
    """Every data file, by its path."""
    return {one["path"]: one["sha256"] for one in facts(published)["files"]}


def receipts(published: Published) -> list[dict[str, Any]]:
    found = sorted((published.folder / "receipts").glob("*.json"))
    return [json.loads(path.read_bytes()) for path in found]


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
