"""CPU seconds of a whole cold build against a bare loop over the same clips.

    python -m benchmarks.cpu_a_record --clips 5000

The loop is what a person would write: read, mix down, resample, write, one clip after the other in
one process. The build does that and all the rest: hashes, checks, asks the stand-in engine (which
answers at once and is a process of its own, not counted, as is Prefect's server), keeps the
answers, publishes. Both are measured over their whole processes by what the kernel counted, imports
included; the note says what the loop alone took.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.builds import build, prefect_server, run_python
from benchmarks.mixed_clips import FORMATS, SHARES, write_clips
from benchmarks.table import Row, print_rows
from tests.integration.workbench import StandIn, record, write_manifest

if TYPE_CHECKING:
    from benchmarks.builds import Cost

SCRIPT = "python -m benchmarks.cpu_a_record"
GOAL = 1.5

LOOP = """
import json, os, sys, time
import av, librosa, numpy as np, soundfile
librosa.resample(np.zeros(441, np.float32), orig_sr=44100, target_sr=16000, res_type="soxr_hq")

def read(path):
    if not path.endswith(".m4a"):
        return soundfile.read(path, dtype="float32", always_2d=True)
    with av.open(path) as file:
        stream = file.streams.audio[0]
        frames = [frame.to_ndarray() for frame in file.decode(stream)]
        return np.concatenate(frames, axis=1).T, stream.rate

started = time.process_time()
clips = 0
for line in open(sys.argv[1]):
    samples, rate = read(json.loads(line)["audio"][0])
    mono = samples.mean(axis=1)
    if rate != 16000:
        mono = librosa.resample(mono, orig_sr=rate, target_sr=16000, res_type="soxr_hq")
    soundfile.write(os.path.join(sys.argv[2], f"{clips}.wav"), mono, 16000, subtype="PCM_16")
    clips += 1
print(json.dumps({"clips": clips, "cpu_s": time.process_time() - started}))
"""


def measure(clips: int = 5000, repeats: int = 2) -> list[Row]:
    """Build and loop over the same clips, in turn.

    Args:
        clips: How many.
        repeats: How often each runs.

    Returns:
        The ratio, and what it is made of.
    """
    builds, loops = [], []
    with tempfile.TemporaryDirectory(prefix="cpu-a-record-") as name:
        folder = Path(name)
        paths = write_clips(folder / "clips", clips)
        records = [record(path, id=number) for number, path in enumerate(paths)]
        manifest = write_manifest(folder / "manifest.jsonl", records)
        engine = StandIn(folder / "engine.log")
        try:
            with prefect_server(folder / "prefect") as environment:
                for turn in range(repeats):
                    loops.append(loop(manifest, folder / f"loop-{turn}"))
                    builds.append(
                        cold_build(manifest, folder / f"out-{turn}", engine.url, environment)
                    )
        finally:
            engine.stop()
    return rows(clips, builds, loops)


def loop(manifest: Path, output: Path) -> Cost:
    """The bare loop, in a process of its own."""
    output.mkdir()
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return run_python(LOOP, str(manifest), str(output), environment=one_thread)


def cold_build(manifest: Path, output: Path, engine: str, environment: dict[str, str]) -> Cost:
    """A whole build into a new output."""
    settings = {"manifest": str(manifest), "output": str(output), "engine": {"url": [engine]}}
    cost = build(settings, environment)
    assert cost.counts["generated"] == cost.counts["rows"], cost.counts
    return cost


def rows(clips: int, builds: list[Cost], loops: list[Cost]) -> list[Row]:
    """The figures as rows."""
    built_s = statistics.median(cost.cpu_s for cost in builds)
    alone_s = statistics.median(cost.counts["cpu_s"] for cost in loops)
    # each build against the loop just before it: what else the machine does slows both
    pairs = list(zip(builds, loops, strict=True))
    ratio = statistics.median(one.cpu_s / other.counts["cpu_s"] for one, other in pairs)
    whole = statistics.median(one.cpu_s / other.cpu_s for one, other in pairs)
    mixed = ", ".join(
        f"{share / sum(SHARES):.0%} {name}" for name, share in zip(FORMATS, SHARES, strict=True)
    )
    size = f"{clips:,} distinct clips of 2-6 s"
    return [
        Row(
            f"CPU of a cold build ÷ a bare loop, {size}",
            f"{ratio:.2f}",
            f"≤ {GOAL}",
            ratio <= GOAL,
            SCRIPT,
            f"{mixed}; without the imports of the loop (with them: {whole:.2f})",
        ),
        Row("CPU of the bare loop, ms per clip", f"{1000 * alone_s / clips:.2f}", "", None, SCRIPT),
        Row("CPU of the build, ms per clip", f"{1000 * built_s / clips:.2f}", "", None, SCRIPT),
    ]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print_rows(measure(given.clips, given.repeats))


if __name__ == "__main__":
    main()
