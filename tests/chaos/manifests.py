"""Hostile manifests: every row accounted for, in bounded memory, whatever a line or file holds.

Each is planned for real, in a process of its own, and the plan is read back.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from tests.chaos import hostile_parquet, hostile_text
from tests.chaos.report import Held

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
STREAMED_LIMIT_MIB = 320
"""Peak memory of planning what is only streamed through; some 90 MiB are the libraries."""
HELD_LIMIT_MIB = 640
"""Peak where one line within the limit (16 MiB) is held as objects."""
_GOOD = hostile_text.GOOD + b"\n"
_MIB = 2**20


def run(folder: Path, *, seed: int, minutes: float) -> list[Held]:
    """The campaign: see the module."""
    large = minutes >= 5
    return [
        *hostile_lines(folder),
        *hostile_files(folder),
        mixtures(folder, seed=seed, count=max(4, round(minutes * 10))),
        damaged_parquet(folder, seed=seed, count=max(50, round(minutes * 100))),
        *giants(folder, line_gib=1.0, packed_gib=10.0 if large else 1.0),
    ]


def planned(folder: Path, manifests: list[Path], limit_s: float = 900) -> list[dict[str, Any]]:
    """What became of manifests, planned one after the other in one process."""
    command = [sys.executable, "-m", "tests.chaos.plan_one", tempfile.mkdtemp(dir=folder)]
    done = subprocess.run(
        [*command, *map(str, manifests)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=limit_s,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if len(found) < len(manifests):
        told = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        found.append({"crashed": f"exit {done.returncode}: {told}"})
    return found + [{"crashed": "not reached"}] * (len(manifests) - len(found))


def hostile_lines(folder: Path) -> list[Held]:
    """Each hostile line between two good ones, and all of them in one manifest."""
    cases = hostile_text.lines()
    paths = []
    for number, (_, line, _) in enumerate(cases):
        path = folder / f"line-{number}.jsonl"
        path.write_bytes(_GOOD + line + b"\n" + _GOOD)
        paths.append(path)
    whole = folder / "lines.jsonl"
    whole.write_bytes(b"".join(line + b"\n" for _, line, _ in cases))
    results = planned(folder, [*paths, whole])
    wrong = []
    for (name, _, expected), found in zip(cases, results, strict=False):
        wanted = {"planned": 3} if expected == "planned" else {"planned": 2, expected: 1}
        if found.get("became") != wanted or not found.get("in_order"):
            wrong.append(f"{name}: {_told(found)}")
    together = results[-1]
    peak = max(found.get("peak_mib", 0) for found in results)
    accounted = sum(together.get("became", {}).values()) == len(cases)
    return [
        Held(
            "a hostile line is planned or rejected, alone",
            len(cases),
            len(cases) - len(wrong),
            "; ".join(wrong),
        ),
        Held(
            "all hostile lines in one manifest are accounted for",
            1,
            int(accounted),
            _told(together),
        ),
        Held(
            "planning hostile lines takes bounded memory",
            1,
            int(peak <= HELD_LIMIT_MIB),
            f"{peak} MiB of {HELD_LIMIT_MIB}",
        ),
    ]


def hostile_files(folder: Path) -> list[Held]:
    """Each hostile Parquet file: its rows accounted for, or one clear error."""
    cases = hostile_parquet.files()
    paths = []
    for number, (_, data, _) in enumerate(cases):
        path = folder / f"file-{number}.parquet"
        path.write_bytes(data)
        paths.append(path)
    wrong = []
    for (name, _, wanted), found in zip(cases, planned(folder, paths), strict=True):
        if isinstance(wanted, str):
            text = found.get("error", "")
            fine = wanted in text and "\n" not in text and len(text) < 600
        else:
            fine = found.get("became") == wanted and found["in_order"]
        if not fine:
            wrong.append(f"{name}: {_told(found)}")
    pickled = (ROOT / "PICKLED").exists()
    return [
        Held(
            "a hostile Parquet file is accounted for or refused",
            len(cases),
            len(cases) - len(wrong),
            "; ".join(wrong),
        ),
        Held("no pickle of a Parquet schema is loaded", 1, int(not pickled)),
    ]


def mixtures(folder: Path, *, seed: int, count: int) -> Held:
    """Manifests of hostile and good lines in any order and packing: as many rows as lines."""
    paths, wanted = [], []
    for number in range(count):
        dice = random.Random(f"{seed}-manifest-{number}")
        data, rows = mixture(dice)
        path = folder / f"mixture-{number}.jsonl"
        path.write_bytes(dice.choice([bytes, gzip.compress, zstandard.compress])(data))
        paths.append(path)
        wanted.append(rows)
    results = planned(folder, paths)
    wrong = [
        f"mixture {number}: {_told(found)} (seed {seed})"
        for number, (rows, found) in enumerate(zip(wanted, results, strict=True))
        if found.get("became") != rows or not found.get("in_order")
    ]
    return Held(
        "mixtures of hostile and good lines: no row lost",
        count,
        count - len(wrong),
        "; ".join(wrong[:5]),
    )


def mixture(dice: random.Random, size: int = 60) -> tuple[bytes, dict[str, int]]:
    """A manifest drawn from hostile and good lines, and what its rows have to become."""
    cases = [case for case in hostile_text.lines() if len(case[1]) < 100_000]
    pieces: list[bytes] = []
    became: dict[str, int] = {}
    for _ in range(size):
        _, line, what = (
            dice.choice(cases) if dice.random() < 0.5 else ("", hostile_text.GOOD, "planned")
        )
        pieces.append(line + dice.choice([b"\n", b"\n", b"\r\n", b"\n\n", b" \t\n"]))
        became[what] = became.get(what, 0) + 1
    return b"".join(pieces), became


def damaged_parquet(folder: Path, *, seed: int, count: int) -> Held:
    """Parquet files with bytes changed: rows or one clear error, and no crash of the reader."""
    paths = []
    for number in range(count):
        path = folder / f"damaged-{number}.parquet"
        path.write_bytes(hostile_parquet.damaged(random.Random(f"{seed}-parquet-{number}")))
        paths.append(path)
    wrong = [
        f"file {number}: {_told(found)} (seed {seed})"
        for number, found in enumerate(planned(folder, paths))
        if "crashed" in found
        or ("became" in found and sum(found["became"].values()) != found["rows"])
    ]
    return Held(
        "damaged Parquet: rows or one clear error", count, count - len(wrong), "; ".join(wrong[:5])
    )


def giants(folder: Path, *, line_gib: float, packed_gib: float) -> list[Held]:
    """Lines and packed manifests far larger than memory should ever see."""
    held = []
    for name, path, wanted in _giants(folder, line_gib, packed_gib):
        found = planned(folder, [path])[0]
        peak = found.get("peak_mib", 0)
        fine = (
            wanted in found.get("error", "")
            if isinstance(wanted, str)
            else found.get("became") == wanted
        )
        told = f"{path.stat().st_size:,} bytes, peak {peak} MiB of {STREAMED_LIMIT_MIB}"
        if not fine:
            told += f": {_told(found)}"
        held.append(Held(name, 1, int(fine and peak <= STREAMED_LIMIT_MIB), told))
        print(f"manifests: {name}: {told}", flush=True)
        path.unlink()
    return held


def _giants(
    folder: Path, line_gib: float, packed_gib: float
) -> Iterator[tuple[str, Path, dict[str, int] | str]]:
    one_rejected = {"planned": 2, "line_too_long": 1}
    path = folder / "giant.jsonl"
    with path.open("wb") as file:
        file.write(_GOOD + b'{"audio":"')
        file.seek(int(line_gib * 2**30), os.SEEK_CUR)  # a hole: zeros that take no disk
        file.write(b'"}\n' + _GOOD)
    yield f"a line of {line_gib:g} GiB is one rejected row", path, one_rejected
    for kind in ("gz", "zst"):
        path = folder / f"giant.jsonl.{kind}"
        _pack(path, kind, b"x", packed_gib)
        yield f"a line of {packed_gib:g} GiB in a .{kind} is one rejected row", path, one_rejected
        _pack(path, kind, b"\n", 0.05)
        yield f"50 million empty lines in a .{kind} are refused", path, "empty lines in a row"
    path = folder / "giant.parquet"
    path.write_bytes(hostile_parquet.repeated_value(300, _MIB))
    yield "300 rows of 1 MiB in a small Parquet file are planned", path, {"planned": 300}
    path.write_bytes(hostile_parquet.repeated_value(20, 32 * _MIB))
    yield "rows of 32 MiB in a small Parquet file are rejected", path, {"line_too_long": 20}


def _pack(path: Path, kind: str, filling: bytes, gib: float) -> None:
    packer: Any
    if kind == "gz":
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    else:
        packer = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as file:
        for block in (_GOOD, *[filling * _MIB] * int(gib * 1024), b"\n" + _GOOD):
            file.write(packer.compress(block))
        file.write(packer.flush())


def _told(found: dict[str, Any]) -> str:
    return str(found.get("crashed") or found.get("error") or found.get("became"))[:300]
