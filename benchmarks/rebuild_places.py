"""Where `benchmarks.rebuild` builds: clips, manifests, an engine and an S3 that count."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.builds import Cost, build
from tests.integration.workbench import (
    LONG_AGO_S,
    S3Server,
    record,
    tone,
    write_clip,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FEW = 10
"""Records of the build that shows what the start costs."""
CLIPS_A_FOLDER = 1000
CHANGED = 100
"""One record in so many is changed."""
ENGINE = """
import sys
from pathlib import Path
from tests.support.standin import main
with Path(sys.argv[1]).open("ab") as starts:
    starts.write(b"*")
main(sys.argv[2:])
"""


@dataclass(frozen=True)
class Place:
    """Where builds read and write, and what they are run with.

    Attributes:
        folder: For everything.
        source: The manifest's folder, as a local path.
        uri: The same as builds see it.
        environment: Of the builds' processes.
        url: Of an engine that runs already; without one a build would start its own.
    """

    folder: Path
    source: Path
    uri: str
    environment: dict[str, str]
    url: str = ""

    @property
    def starts(self) -> int:
        """Engine starts so far."""
        return _size(self.folder / "starts")

    @property
    def requests(self) -> int:
        """Engine requests so far."""
        return _size(self.folder / "requests")

    def build(self, output: str, manifest: str = "manifest.jsonl") -> Cost:
        """Build a manifest of this place's source in a process of its own."""
        code = self.folder / "engine.py"
        code.write_text(ENGINE, encoding="utf-8")
        counted = ["--count-file", str(self.folder / "requests")]
        command = [sys.executable, str(code), str(self.folder / "starts"), *counted]
        settings = {
            "manifest": f"{self.uri}/{manifest}",
            "output": output,
            "model": str(model_folder(self.folder)),
            "engine": {"url": [self.url]} if self.url else {"command": command},
        }
        return build(settings, self.environment)


def write_input(folder: Path, rows: int, asked: str = "What is it?", pitch_hz: float = 0.0) -> None:
    """Clips under common prefixes, each of its own, and manifests that ask about all and a few.

    One record in `CHANGED` is asked `asked`; where `pitch_hz` is given, its clip is another one.
    """
    records = []
    for row in range(rows):
        name = f"clips/{row // CLIPS_A_FOLDER:03d}/{row:07d}.wav"
        changed = row % CHANGED == 0
        if not (folder / name).exists():
            write_clip(folder / name, _sound(row))
        elif changed and pitch_hz:
            write_clip(folder / name, _sound(row, pitch_hz))
            os.utime(folder / name, (LONG_AGO_S + 1, LONG_AGO_S + 1))
        records.append(record(name, asked if changed else "What is it?", id=row))
    write_manifest(folder / "manifest.jsonl", records)
    write_manifest(folder / "few.jsonl", records[1 : 1 + FEW])


def _sound(row: int, pitch_hz: float = 0.0) -> Any:
    return tone(100 + row % 7000 + pitch_hz, 0.06 + row // 7000 / 1000)


@contextmanager
def s3_endpoint(folder: Path) -> Iterator[tuple[S3Server, dict[str, str]]]:
    buckets = S3Server(folder / "buckets", folder / "s3.log")
    server = buckets.start()
    try:
        yield buckets, buckets.environment
    finally:
        server.stop()


def s3_calls(buckets: S3Server) -> int:
    return buckets.log_path.read_text(encoding="utf-8").count("serve s3: ")


def model_folder(folder: Path) -> Path:
    """A folder that names a model; nothing loads it."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"architectures": ["None"]}', encoding="utf-8")
    return model


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
