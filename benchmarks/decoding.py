"""Fetching and decoding alone: worker processes or threads, memory or disk, how many at once.

    python -m benchmarks.decoding --clips 400

Everything is warm, ways are tried in turn and medians compared. Nothing here has a goal: the rows
say why clips are decoded in processes, several at a time, and what scratch in memory would save.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.mixed_clips import write_clips
from benchmarks.processes import cpu_s
from benchmarks.table import Row, print_rows
from earwitness.access import AccessPolicy
from earwitness.audio.decode import decode, warm_up
from earwitness.audio.fetch import ClipFetcher
from earwitness.audio.pool import SEVERAL_CLIPS, DecodePool
from earwitness.audio.probe import probe
from earwitness.cpus import usable_cpus
from earwitness.settings import AudioSettings
from tests.integration.workbench import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPT = "python -m benchmarks.decoding"
MEMORY = Path("/dev/shm")
REPEATS = 3
AT_ONCE = (1, 8, 32, 64)
_POLICY = AudioSettings()


@dataclass(frozen=True, slots=True)
class Spent:
    """What one way of doing a thing took, medians.

    Attributes:
        wall_s: Of all clips.
        cpu_s: Of this process and all below it.
    """

    wall_s: float
    cpu_s: float


def measure(clips: int = 400) -> list[Row]:
    """Decode and fetch so many clips in every way.

    Args:
        clips: How many.
    """
    cores = usable_cpus()
    with tempfile.TemporaryDirectory(prefix="decoding-") as name, ExitStack() as stack:
        folder = Path(name)
        paths = write_clips(folder / "buckets" / "clips", clips)
        out = folder / "out"
        out.mkdir()
        warm_up()
        pool = stack.enter_context(DecodePool(cores))
        threads = stack.enter_context(ThreadPoolExecutor(cores))
        spent = compare(
            {
                "several": lambda: in_processes(pool, paths, out),
                "one": lambda: one_by_one(pool, paths, out),
                "threads": lambda: in_threads(threads, paths, out),
            }
        )
        return [
            _against("several clips at the same time ÷ one by one", spent["several"], spent["one"]),
            _against(f"in {cores} processes ÷ {cores} threads", spent["several"], spent["threads"]),
            scratch_row(pool, paths, folder),
            *s3_rows(paths, folder),
        ]


def compare(ways: dict[str, Callable[[], object]]) -> dict[str, Spent]:
    """Try ways in turn, each once to warm up; medians."""
    tried: dict[str, list[Spent]] = {name: [] for name in ways}
    for turn in range(REPEATS + 1):
        for name, way in ways.items():
            wall_s, used_s = time.perf_counter(), cpu_s(os.getpid())
            way()
            wall_s, used_s = time.perf_counter() - wall_s, cpu_s(os.getpid()) - used_s
            if turn:
                tried[name].append(Spent(wall_s, used_s))
    return {
        name: Spent(
            statistics.median(one.wall_s for one in runs),
            statistics.median(one.cpu_s for one in runs),
        )
        for name, runs in tried.items()
    }


def in_processes(pool: DecodePool, paths: list[Path], out: Path) -> None:
    """As builds do: probe all, then decode all, several at a time."""
    parts = [paths[at : at + SEVERAL_CLIPS] for at in range(0, len(paths), SEVERAL_CLIPS)]
    for probed in [pool.probe_each(part) for part in parts]:
        probed.result()
    jobs = [pool.decode_each([(p, out / f"{p.stem}.wav") for p in part], _POLICY) for part in parts]
    for job in jobs:
        job.result()


def one_by_one(pool: DecodePool, paths: list[Path], out: Path) -> None:
    """The same, each clip a call of its own."""
    for probed in [pool.probe(path) for path in paths]:
        probed.result()
    for job in [pool.decode(path, out / f"{path.stem}.wav", _POLICY) for path in paths]:
        job.result()


def in_threads(threads: ThreadPoolExecutor, paths: list[Path], out: Path) -> None:
    """The same in this process, where a native crash would be everybody's."""
    list(threads.map(probe, paths))
    list(threads.map(lambda path: decode(path, out / f"{path.stem}.wav", _POLICY), paths))


def scratch_row(pool: DecodePool, paths: list[Path], folder: Path) -> Row:
    """Clips fetched and decoded on a scratch folder in memory against one on disk."""
    what = "fetched and decoded with scratch in memory ÷ on disk"
    if not os.access(MEMORY, os.W_OK):
        return Row(what, "not measured", "", None, SCRIPT, f"{MEMORY} is not writable")

    def on(place: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="decoding-", dir=place) as name:
            clips = asyncio.run(fetched([str(path) for path in paths], Path(name), at_once=64))
            in_processes(pool, clips, Path(name))

    spent = compare({"memory": lambda: on(MEMORY), "disk": lambda: on(folder)})
    return _against(what, spent["memory"], spent["disk"])


async def fetched(uris: list[str], folder: Path, *, at_once: int) -> list[Path]:
    """Fetch clips as builds do; where they lie."""
    async with ClipFetcher(at_once, access=AccessPolicy(trusted=True)) as fetcher:
        found = await asyncio.gather(*(fetcher.fetch(uri, folder, 2**30) for uri in uris))
    return [clip.path for clip in found]


def s3_rows(paths: list[Path], folder: Path) -> list[Row]:
    """Clips a second from an S3 endpoint, so many at once."""
    with s3_server(folder) as server:
        root = Path(server.folder)
        uris = [f"s3://{path.relative_to(root)}" for path in paths]
        rate: dict[int, float] = {}
        for at_once in (AT_ONCE[0], *AT_ONCE):  # the first once more: it warmed everything up
            with tempfile.TemporaryDirectory(dir=folder) as name:
                started = time.perf_counter()
                asyncio.run(fetched(uris, Path(name), at_once=at_once))
                rate[at_once] = len(uris) / (time.perf_counter() - started)
    note = "rclone on this machine, without network latency: its CPU time is the limit"
    return [
        Row(
            f"S3 clips per second, {at_once} at the same time",
            f"{one:,.0f}",
            "",
            None,
            SCRIPT,
            note,
        )
        for at_once, one in rate.items()
    ]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """An S3 endpoint over the clips, which the environment points at."""
    server = S3Server(folder / "buckets", folder / "s3.log")
    running = server.start()
    given = server.environment
    before = {name: os.environ.get(name) for name in given}
    os.environ |= given
    try:
        yield server
    finally:
        running.stop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _against(what: str, ours: Spent, other: Spent) -> Row:
    note = f"wall time; CPU time: {ours.cpu_s / other.cpu_s:.2f}"
    return Row(f"decoding, {what}", f"{ours.wall_s / other.wall_s:.2f}", "", None, SCRIPT, note)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=400)
    print_rows(measure(parser.parse_args().clips))


if __name__ == "__main__":
    main()
