"""What share of an engine's own peak a whole cold build sustains, from 50 to 2,000 requests/s.

    python -m benchmarks.saturation --rates 50 200 500 1000 2000

The engine is the stand-in: as many slots as vLLM has here by default, and a latency that gives the
rate. Its peak is what a bare client gets out of it with ready files and as much in flight as a
build keeps there. Both sides are timed by the engine itself, from its first answer to its last.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.builds import Cost, build, prefect_server, run_python
from benchmarks.table import Row, print_rows
from earwitness.cpus import usable_cpus
from earwitness.engine.given import in_flight
from tests.integration.workbench import StandIn, record, tone, write_clip, write_manifest

GOAL = 0.97
SLOTS = 128
RATES = (50, 200, 500, 1000, 2000)
POINT_S = 18.0
"""So long the engine is at work for one side of a point."""
MOST = 8_000
"""More records than this are not asked at one point: it would take minutes, and say no more."""
CLIP_S = 1.0
BARE = "import sys; from benchmarks.bare_client import main; main()"


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine did for one side, by its own clock.

    Attributes:
        answers: How many it gave.
        first_s: When it gave the first, on the machine's clock.
        last_s: When it gave the last.
        cpu_s: Its own CPU seconds meanwhile.
        starved_s: Time, meanwhile, in which some of its slots were empty.
        idle_s: The time of all slots that were empty meanwhile, divided by their number.
    """

    answers: int
    first_s: float
    last_s: float
    cpu_s: float
    starved_s: float
    idle_s: float

    @property
    def rate(self) -> float:
        """Answers a second, from the first to the last."""
        return (self.answers - 1) / (self.last_s - self.first_s)


def served(times: Path, slots: int = SLOTS) -> Served:
    """Read what the stand-in noted: when it began and ended each answer, and its CPU by then."""
    lines = [tuple(map(float, line.split())) for line in times.read_text().splitlines()]
    ended = sorted(line[1] for line in lines)
    cpu = sorted(line[2] for line in lines)
    changes = sorted([(line[0], 1) for line in lines] + [(line[1], -1) for line in lines])
    running, before_s, starved_s, idle_s = 0, ended[0], 0.0, 0.0
    for now_s, change in changes:
        # by the first answer's time the slots have been filled once; the last ones run empty
        if before_s < now_s <= ended[-1] and running < slots:
            starved_s += now_s - before_s
            idle_s += (now_s - before_s) * (slots - running) / slots
        before_s = max(before_s, now_s)
        running += change
    return Served(len(lines), ended[0], ended[-1], cpu[-1] - cpu[0], starved_s, idle_s)


def write_clips(folder: Path, count: int) -> list[Path]:
    """Ready 16 kHz clips, each of its own."""
    return [
        write_clip(folder / f"{n // 1000:03d}" / f"{n:06d}.wav", tone(100 + n * 0.7, CLIP_S))
        for n in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a point: what the engine saw of it, and what it cost."""

    served: Served
    cost: Cost


def bare(folder: Path, clips: Path, latency_s: float) -> Side:
    """The bare client against an engine of its own."""
    times = folder / "bare.times"
    flags = ["--latency-s", str(latency_s), "--max-num-seqs", str(SLOTS)]
    flags += ["--times-file", str(times), "--allowed-local-media-path", str(clips)]
    engine = StandIn(folder / "bare.log", *flags)
    try:
        flight = str(in_flight(SLOTS))
        cost = run_python(BARE, engine.url, str(clips), "--in-flight", flight)
    finally:
        engine.stop()
    return Side(served(times), cost)


def whole_build(folder: Path, manifest: Path, latency_s: float, env: dict[str, str]) -> Side:
    """A cold build that starts the engine itself, as a build does."""
    times = folder / "build.times"
    command = [sys.executable, "-m", "tests.support.standin", "--latency-s", str(latency_s)]
    engine = {"command": [*command, "--times-file", str(times)], "max_num_seqs": SLOTS}
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = {"manifest": str(manifest), "output": str(folder / "out"), "model": str(model)}
    cost = build({**settings, "engine": engine}, env)
    return Side(served(times), cost)


@dataclass(frozen=True, slots=True)
class Point:
    """One rate: the bare client, then the build.

    Attributes:
        rate: Requests a second that the engine's slots and latency allow.
        records: How many were asked on each side.
        alone: The bare client.
        whole: The build.
    """

    rate: int
    records: int
    alone: Side
    whole: Side

    @property
    def share(self) -> float:
        """The build's rate against the bare client's, from the first answer to the last."""
        return self.whole.served.rate / self.alone.served.rate

    @property
    def build_ms(self) -> float:
        """CPU of the build a record, engine excluded."""
        return (self.whole.cost.cpu_s - self.whole.served.cpu_s) / self.records * 1e3

    @property
    def fed(self) -> float:
        """Records a second that this machine's cores have the CPU for, engine included."""
        engine_ms = self.whole.served.cpu_s / self.records * 1e3
        return 1e3 * usable_cpus() / (self.build_ms + engine_ms)

    def row(self) -> Row:
        """As the table has it; beyond what the cores feed there is no goal to meet."""
        alone, whole = self.alone, self.whole
        with_ends = self.records / whole.cost.wall_s / alone.served.rate
        note = (
            f"engine alone {alone.served.rate:,.0f}/s, build {whole.served.rate:,.0f}/s; "
            f"{with_ends:.1%} with start and end ({whole.cost.wall_s:.1f} s in total); slots empty "
            f"{whole.served.idle_s:.2f} s in the build, {alone.served.idle_s:.2f} s alone; CPU per "
            "request: "
            f"engine {alone.served.cpu_s / self.records * 1e3:.2f} ms, bare client "
            f"{alone.cost.cpu_s / self.records * 1e3:.2f} ms, build {self.build_ms:.2f} ms"
        )
        beyond = self.rate > self.fed and self.share < GOAL
        if beyond:
            note += f"; above the {self.fed:,.0f}/s that the CPU of this machine allows"
        return Row(
            f"saturation: {self.rate:,} requests/s, {self.records:,} clips",
            f"{self.share:.1%}",
            f">= {GOAL:.0%}",
            None if beyond else self.share >= GOAL,
            f"python -m benchmarks.saturation --rates {self.rate}",
            note,
        )


def measured(folder: Path, rate: int, records: int, env: dict[str, str]) -> Point:
    """Measure both sides of a rate."""
    clips = write_clips(folder / "clips", records)
    manifest = write_manifest(folder / "m.jsonl", [record(clip) for clip in clips])
    latency_s = SLOTS / rate
    alone = bare(folder, folder / "clips", latency_s)
    whole = whole_build(folder, manifest, latency_s, env)
    shutil.rmtree(folder / "clips")
    if whole.cost.counts["answered"] != records:
        raise SystemExit(f"not all were answered: {whole.cost.counts}")
    return Point(rate, records, alone, whole)


def measure(rates: tuple[int, ...] = RATES, point_s: float = POINT_S) -> list[Row]:
    """A row a rate, and where it ends."""
    with tempfile.TemporaryDirectory(prefix="saturation-") as name:
        home = Path(name)
        with prefect_server(home / "prefect") as env:
            points = [
                measured(home / str(rate), rate, min(MOST, round(rate * point_s)), env)
                for rate in rates
            ]
    best = max((point.rate for point in points if point.share >= GOAL), default=0)
    last = points[-1]
    note = (
        f"the build costs {last.build_ms:.2f} ms of CPU per record with {last.records:,} clips, "
        f"without the stand-in's share; with {usable_cpus()} cores this allows {last.fed:,.0f}/s"
    )
    script = "python -m benchmarks.saturation"
    value = f"{best:,}/s" if best else f"none of {', '.join(map(str, rates))}/s"
    ends = Row("saturation: highest measured rate that reaches the goal", value, "", None, script)
    return [*(point.row() for point in points), replace(ends, note=note)]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=int, nargs="*", default=RATES)
    parser.add_argument("--point-s", type=float, default=POINT_S)
    options = parser.parse_args()
    print_rows(measure(tuple(options.rates), options.point_s))


if __name__ == "__main__":
    main()
