"""Building again: when nothing changed, and when one record in a hundred did.

    python -m tests.bench.rebuild --rows 20000

Locally, and on an S3 endpoint whose own log counts every call.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.builds import Cost, build, prefect_server
from tests.integration.workbench import (
    CREDENTIALS,
    S3Server,
    StandIn,
    record,
    tone,
    write_clip,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CLIPS_A_FOLDER = 1000
CHANGED = 100
"""One record in so many is changed."""


def write_input(folder: Path, rows: int, changed: int = 0) -> Path:
    """Clips under common prefixes, each of its own; a manifest that asks about each."""
    records = []
    for row in range(rows):
        name = f"clips/{row // CLIPS_A_FOLDER:03d}/{row:07d}.wav"
        if not (folder / name).exists():
            write_clip(folder / name, tone(100 + row % 7000, 0.06 + row // 7000 / 1000))
        asked = f"What is it{', now' if changed and row % changed == 0 else ''}?"
        records.append(record(name, asked, id=row))
    return write_manifest(folder / "manifest.jsonl", records)


def measure(
    source: str, output: str, write: Callable[[int], Any], calls: Callable[[], int], env: Any
) -> dict[str, float]:
    """A full build, a rebuild of the same, a rebuild of what changed a little."""
    engine: StandIn = env["engine"]
    settings = {
        "manifest": f"{source}/manifest.jsonl",
        "output": output,
        "engine": {"url": [engine.url]},
    }
    found: dict[str, float] = {}
    costs: dict[str, Cost] = {}
    for name, changed in (("full", 0), ("again", 0), ("one in a hundred", CHANGED)):
        write(changed)
        asked, called = engine.asked(), calls()
        costs[name] = build(settings, env["prefect"])
        rows = costs[name].counts["rows"]
        found |= {
            f"{name}: seconds": costs[name].wall_s,
            f"{name}: records a second": rows / costs[name].wall_s,
            f"{name}: engine requests": engine.asked() - asked,
            f"{name}: S3 calls a record": (calls() - called) / rows,
        }
    found["one in a hundred / full"] = costs["one in a hundred"].wall_s / costs["full"].wall_s
    return found


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="rebuild-") as name, ExitStack() as stack:
        folder = Path(name)
        engine = StandIn(folder / "engine.log")
        stack.callback(engine.stop)
        env = {
            "engine": engine,
            "prefect": stack.enter_context(prefect_server(folder / "prefect")),
        }
        local = folder / "local"
        found = measure(
            str(local), str(folder / "out"), lambda n: write_input(local, rows, n), lambda: 0, env
        )
        _print("local folders", found)

        buckets = S3Server(folder / "buckets", folder / "s3.log")
        source = buckets.folder / "bucket" / "in"
        write_input(source, rows)
        stack.callback(buckets.start().stop)
        key, secret = CREDENTIALS
        os.environ |= {"AWS_ENDPOINT_URL": buckets.url, "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        found = measure(
            "s3://bucket/in",
            "s3://bucket/out",
            lambda n: write_input(source, rows, n),
            lambda: buckets.log_path.read_text().count("serve s3: "),
            env,
        )
        _print("S3", found)


def _print(where: str, found: dict[str, float]) -> None:
    for name, value in found.items():
        print(f"{where:<14} {name:<40} {value:>12,.3f}", flush=True)


if __name__ == "__main__":
    main()
