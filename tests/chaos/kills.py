"""Kills at random instants: SIGKILL for a build, its parts and its servers, then the same command.

    python -m tests.chaos.kills --seed 1 --kills 100        the kills alone
    python -m tests.chaos.kills --seed 1 --number 17        that one build of them again
    python -m tests.chaos.kills --seed 1 --cuts 1 --number 3     the same for a power cut
    python -m tests.chaos.kills --faults                    power cuts, full disks, clocks
    python -m tests.chaos.kills --seed 1 --vllm 10          kills of builds with real vLLM

Each build has a number; its seed is made of the campaign's and the number. What is killed is drawn,
and at which share of what is left to do: the clock decides which instruction that is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.builds import Layout
from tests.chaos.clock import turn_clocks
from tests.chaos.disk import CASES, Case, fill_disks
from tests.chaos.killing import ENGINE_FLAGS, Disturbed, disturb
from tests.chaos.kills_vllm import kill_vllm
from tests.chaos.powercut import cut_power
from tests.chaos.report import Held
from tests.chaos.servers import bench

KILLS_A_MINUTE = 14
CUTS_A_MINUTE = 0.7
VLLM_FROM_MINUTES = 30
SMALL = Layout(rows=200, shard_rows=100, batch_rows=25, clips=32)
SMALL_FLAGS = ("--latency-s", "0.2", "--slots", "8")


def kill_builds(
    folder: Path, *, seed: int, kills: int, first: int = 0, prefect: str | None = None
) -> list[Held]:
    """Disturb builds until so many kills are done."""
    done: list[Disturbed] = []
    with bench(folder, Layout(), *ENGINE_FLAGS, prefect=prefect) as work:
        while (left := kills - sum(len(one.kills) for one in done)) > 0 and len(done) < kills:
            done.append(disturb(work, seed, first + len(done), most=left))
            print(f"kills: {done[-1]}", flush=True)
    return [told(done, seed)]


def told(done: list[Disturbed], seed: int) -> Held:
    """One line of the table."""
    hits = [hit for one in done for hit in one.kills]
    broken = [one for one in done if one.broken]
    whats, stages = Counter(hit.what for hit in hits), Counter(hit.stage for hit in hits)
    detail = (
        f"{len(done)} builds, {len(hits)} kills: {_counted(whats)}; while {_counted(stages)}; "
        f"most asked again a kill {max((one.most_lost for one in done), default=0):.0f}, in all "
        f"{sum(one.lost for one in done)}; "
        f"{sum(one.ended_clearly for one in done)} runs ended by themselves with a clear line"
    )
    for one in broken:
        command = f"python -m tests.chaos.kills --seed {seed} --number {one.number}"
        detail += f"\n  {one}\n  again: {command}"
    what = "SIGKILL at random instants, 2,000 records: ends identical, nothing left, one window"
    held = sum(len(one.kills) for one in done if not one.broken)
    return Held(what, held + sum(max(len(one.kills), 1) for one in broken), held, detail)


def _counted(numbers: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in numbers.most_common())


def run(folder: Path, *, seed: int, minutes: float) -> list[Held]:
    """The campaign: kills, then power cuts, full disks and clocks that jump."""
    found = kill_builds(folder / "kills", seed=seed, kills=max(round(KILLS_A_MINUTE * minutes), 6))
    found += try_faults(folder / "faults", seed=seed, cuts=max(round(CUTS_A_MINUTE * minutes), 2))
    if minutes >= VLLM_FROM_MINUTES:
        found.append(kill_vllm(folder / "vllm", seed=seed, kills=10))
    return found


def try_faults(
    folder: Path,
    *,
    seed: int,
    cuts: int,
    first: int = 0,
    cases: tuple[Case, ...] = CASES,
    jumps: int = 9,
    prefect: str | None = None,
) -> list[Held]:
    """Power cuts, full disks and clocks that jump, over a small dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    with bench(folder, SMALL, *SMALL_FLAGS, prefect=prefect) as work:
        found = [cut_power(work, seed=seed, cuts=cuts, first=first)] if cuts else []
        found += [fill_disks(work, cases=cases)] if cases else []
        return [*found, turn_clocks(work, most=jumps)] if jumps else found


def main() -> None:
    """One part of the campaign alone, or one build of it again."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--number", type=int, default=None, help="that build or power cut alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first build")
    parser.add_argument("--cuts", type=int, default=None, help="so many power cuts alone")
    parser.add_argument("--faults", action="store_true", help="all but the kills")
    parser.add_argument("--vllm", type=int, default=None, metavar="KILLS")
    given = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="earwitness-kills-") as name:
        held = _chosen(Path(name), given)
    for line in held:
        print(f"{line.held} of {line.tried}  {line.what}\n  {line.detail}")
    print(f"{time.monotonic() - began_s:.0f} s")
    sys.exit(any(line.failed for line in held))


def _chosen(folder: Path, given: argparse.Namespace) -> list[Held]:
    seed, number = given.seed, given.number
    if given.vllm is not None:
        return [kill_vllm(folder / "vllm", seed=seed, kills=given.vllm)]
    if given.cuts is not None:
        first = number or 0
        return try_faults(folder, seed=seed, cuts=given.cuts, first=first, cases=(), jumps=0)
    if given.faults:
        return try_faults(folder, seed=seed, cuts=10)
    if number is None:
        return kill_builds(folder, seed=seed, kills=given.kills, first=given.first)
    with bench(folder, Layout(), *ENGINE_FLAGS) as work:
        return [told([disturb(work, seed, number)], seed)]


if __name__ == "__main__":
    main()
