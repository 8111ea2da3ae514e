"""A build on real vLLM, killed in the middle of its answers, twice, and continued."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import wave
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HOUSE = Path(__file__).parents[2]
MODEL = Path(os.environ.get("EARWITNESS_TEST_MODEL", HOUSE / "demo_model/weights")).resolve()
LIMIT_S = 600
GONE_WITHIN_S = 60
MARKER = "EARWITNESS_TEST_RUN"

ROWS, CLIPS, SHARD_ROWS = 48, 6, 24
LAYOUT = ("--shard-rows", "24", "--batch-rows", "2", "--window-batches", "2")
WAYS: dict[str, Callable[[int], None]] = {
    "group": lambda pid: os.killpg(pid, signal.SIGKILL),
    "alone": lambda pid: os.kill(pid, signal.SIGKILL),
}

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not MODEL.is_dir(), reason=f"no model at {MODEL}: make demo makes it"),
]


def write_manifest(folder: Path) -> Path:
    for number in range(CLIPS):
        times = np.arange(16_000) / 16_000
        samples = (8_000 * np.sin(2 * np.pi * (200 + 100 * number) * times)).astype("<i2")
        with wave.open(str(folder / f"{number}.wav"), "wb") as clip:
            clip.setparams((1, 2, 16_000, len(samples), "NONE", ""))
            clip.writeframes(samples.tobytes())
    with (folder / "m.jsonl").open("w") as file:
        for row in range(ROWS):
            turns = [{"from": "human", "value": f"What is sound {row}?"}]
            record = {"audio": [f"{row % CLIPS}.wav"], "conversation": turns, "id": row}
            file.write(json.dumps(record) + "\n")
    return folder / "m.jsonl"


def start(manifest: Path, output: Path, home: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a build in a session of its own; the process and the mark all its children bear."""
    mark = uuid.uuid4().hex
    given = {"PREFECT_HOME": str(home / "prefect"), "XDG_CACHE_HOME": str(home / "cache")}
    command = [sys.executable, "-m", "cli.main", "build", manifest, output, "--model", MODEL]
    command += ["--dtype", "float32", "--max-tokens", "24", "--max-num-seqs", "8", "--no-print"]
    command += ["--seed", "1"]  # builds are compared byte for byte
    process = subprocess.Popen(
        [*map(str, command), *LAYOUT, "--", "--enforce-eager"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HOUSE,
        env={**os.environ, **given, MARKER: mark},
        start_new_session=True,
    )
    return process, mark


def family(mark: str) -> set[int]:
    """Sessions of the living processes that bear a mark, and of all that descend from them."""
    parents, sessions, found = {}, {}, set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z":
                    parents[int(folder.name)], sessions[int(folder.name)] = int(stat[1]), stat[3]
                    if mark.encode() in (folder / "environ").read_bytes():
                        found.add(int(folder.name))
    # vLLM's processes write their titles over their environment
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {int(sessions[pid]) for pid in found}


def members(sessions: set[int]) -> dict[int, str]:
    """Living processes of some sessions, by name."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z" and int(stat[3]) in sessions:
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
    return found


def nothing_is_left(mark: str, sessions: set[int] = frozenset()) -> None:
    limit = time.monotonic() + GONE_WITHIN_S
    while left := members(sessions | family(mark)):
        assert time.monotonic() < limit, f"left behind: {left}"
        time.sleep(0.1)


def finish(manifest: Path, output: Path, home: Path) -> str:
    process, mark = start(manifest, output, home)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    nothing_is_left(mark)
    return err


def segments(output: Path, shard: int) -> int:
    """Batches of a shard whose answers are stored."""
    return len(list(output.glob(f"builds/*/work/shard-{shard:05d}/batch-*.parquet")))


def published(output: Path) -> tuple[str, dict[str, bytes], dict]:
    """The build, the files of its dataset, and its ledger."""
    build = json.loads((output / "latest.json").read_bytes())["build"]
    folder = output / "builds" / build
    paths = [path for part in ("data", "jsonl", "rejected") for path in folder.glob(f"{part}/*")]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return build, files, json.loads((folder / "build.json").read_bytes())["counts"]


def test_killed_in_mid_generation_it_ends_as_if_nothing_had_happened(tmp_path: Path):
    manifest, output = write_manifest(tmp_path), tmp_path / "out"
    for shard, kill in enumerate(WAYS.values()):
        process, mark = start(manifest, output, tmp_path)
        while segments(output, shard) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.005)
        sessions = family(mark)
        kill(process.pid)
        running = set(members(sessions).values())
        assert process.wait() == -signal.SIGKILL
        assert any("EngineCor" in name for name in running), running
        nothing_is_left(mark, sessions)
        assert segments(output, shard) < SHARD_ROWS / 2
        assert not (output / "latest.json").exists()
    said = finish(manifest, output, tmp_path)
    finish(manifest, tmp_path / "undisturbed", tmp_path)

    build, files, counts = published(output)
    assert f"build {build} (continued)" in said
    assert [path.parent.name for path in output.glob("builds/*/build.json")] == [build]
    assert (counts["rows"], counts["answered"], counts["generated"]) == (ROWS, ROWS, ROWS)
    assert files == published(tmp_path / "undisturbed")[1]
