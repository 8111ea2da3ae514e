"""Whole builds over an engine that dies on a clip each time it hears it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from earwitness.audio.decode import decode
from earwitness.settings import AudioSettings
from tests.chaos.engine_scene import ROOT, STANDIN, hold
from tests.integration.workbench import Published, record, tone, write_clip, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT_S = 600
SHARDS = 2
SLOTS = 64


@dataclass
class PoisonBuild:
    """A dataset with one clip in it that kills the engine, and how it is built."""

    folder: Path
    rows: int
    seed: str

    def __post_init__(self) -> None:
        self.output = self.folder / "out"
        self.starts_path, self.asked_path = self.folder / "starts", self.folder / "asked"
        clips = self.folder / "clips"
        self.poison_row = random.Random(self.seed).randrange(self.rows)
        records = []
        for number in range(40):
            write_clip(clips / f"{number}.wav", tone(200 + 30 * number, 0.08))
        write_clip(clips / "poison.wav", tone(3_000, 0.08))
        for row in range(self.rows):
            name = "poison" if row == self.poison_row else row % 40
            records.append(record(f"clips/{name}.wav", f"What is number {row}?", id=row))
        self.manifest = write_manifest(self.folder / "m.jsonl", records)
        heard = self.folder / "heard.wav"
        decode(clips / "poison.wav", heard, AudioSettings())
        self.poison = hashlib.sha256(heard.read_bytes()).hexdigest()
        self.model = self.folder / "model"
        self.model.mkdir()
        (self.model / "config.json").write_text("{}")

    @property
    def command(self) -> list[str]:
        """The engine's."""
        engine = [*STANDIN, "--crash-on", self.poison, "--latency-s", "0.05"]
        engine += ["--starts-file", str(self.starts_path), "--count-file", str(self.asked_path)]
        return engine

    @property
    def layout(self) -> dict[str, int]:
        return {"shard_rows": self.rows // SHARDS, "batch_rows": max(50, self.rows // 8)}

    @property
    def restarts(self) -> int:
        return self.starts_path.stat().st_size - 1

    @property
    def asked(self) -> int:
        return self.asked_path.stat().st_size


def by_command(build: PoisonBuild, env: dict[str, str]) -> None:
    """Build it as a person does."""
    words: list[Any] = [build.manifest, build.output, "--model", build.model]
    words += ["--command", shlex.join(build.command), "--max-num-seqs", SLOTS, "--no-print"]
    for name, rows in build.layout.items():
        words += [f"--{name.replace('_', '-')}", rows]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "build", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **env, "EARWITNESS_SCRATCH": str(build.folder / "scratch")},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    hold(done.returncode == 0, done.stderr[-2000:])


def poison_among(build: PoisonBuild, run: Callable[[PoisonBuild], Any]) -> str:
    """One rejected row, remembered; all others answered; the engine restarted thrice at most."""
    rows, began = build.rows, time.monotonic()
    run(build)
    took_s = time.monotonic() - began
    published = Published(build.output)
    rejected = published.rejections()
    hold([row["id"] for row in rejected] == [build.poison_row], f"rejected: {rejected}")
    hold(rejected[0]["earwitness"]["reason"] == "engine_crash", rejected[0])
    hold(len(published.answers()) == rows - 1, f"{len(published.answers())} answered")
    hold(build.restarts <= 3, f"{build.restarts} restarts")
    restarts, asked, first = build.restarts, build.asked, published.folder

    run(build)
    counts = json.loads((published.folder / "build.json").read_text())["counts"]
    hold(published.folder != first, "it is not built again")
    hold(build.asked == asked, f"{build.asked - asked} asked again")
    hold(counts["rejected"] == 1, counts)
    hold(counts["reused"] == rows - 1, counts)
    return f"{restarts} restarts, {asked} asked, {took_s:.0f} s"
