"""An engine's faults: it dies, hangs, talks nonsense, has no room, does not start, changes.

python -m tests.chaos.engine --seed 1              all of it, once
python -m tests.chaos.engine --seed 1 --only hang  the cases whose name has this in it
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earwitness.errors import EarwitnessError
from tests.chaos.engine_builds import PoisonBuild, by_command, poison_among
from tests.chaos.engine_cases import (
    CASES,
    MEMORY,
    garbage_at_times,
    garbage_for_a_while,
    garbage_for_good,
    too_little_memory,
)
from tests.chaos.engine_scene import BrokenPromiseError, Scene
from tests.chaos.report import Held
from tests.support.standin_faults import GARBAGE

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 2_000
AT_ONCE = 4
"""Cases of one promise that are played at the same time: they wait more than they work."""
PASS_MINUTES = 4.0
"""What all cases once take, about."""


def everything() -> dict[str, list[Callable[[Scene], Any]]]:
    """All promises, each with the cases that try it."""
    tries: dict[str, list[Callable[[Scene], Any]]] = {
        f"a poison clip among {ROWS:,}: one row, remembered": [_poison_build]
    }
    tries |= {name: [case] for name, case in CASES.items()}
    tries["too little memory: one try, one line, which setting helps"] = [
        partial(too_little_memory, log=log, advice=advice) for log, advice in MEMORY.items()
    ]
    for name, case in (
        ("garbage at times: never an answer", garbage_at_times),
        ("garbage for seconds: waited out", garbage_for_a_while),
        ("garbage for good: a clear failure, no row rejected", garbage_for_good),
    ):
        tries[name] = [partial(case, kind=kind) for kind in GARBAGE]
    return tries


def run(folder: Path, *, seed: int, minutes: float, only: str = "") -> list[Held]:
    """Try every fault; each once at least.

    Args:
        folder: Empty scratch.
        seed: What is drawn follows from it.
        minutes: How long it may take, about.
        only: Part of the names of what is tried.

    Returns:
        A line for each promise.
    """
    return [
        _try(name, cases, folder, seed, rounds=max(1, round(minutes / PASS_MINUTES)))
        for name, cases in everything().items()
        if only in name
    ]


def _try(
    name: str, cases: list[Callable[[Scene], Any]], folder: Path, seed: int, *, rounds: int
) -> Held:
    began = time.monotonic()
    keyed = [
        (case, f"{seed}-{name}-{number}-{_named(case)}")
        for number in range(rounds)
        for case in cases
    ]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = list(
            pool.map(lambda one: play(one[0], Path(tempfile.mkdtemp(dir=folder)), one[1]), keyed)
        )
    broken = [error for _, error in played if error]
    tried, held = len(played), len(played) - len(broken)
    command = f"python -m tests.chaos.engine --seed {seed} --rounds {rounds} --only {name!r}"
    detail = f"{broken[0]} [{command}]" if broken else played[0][0] * (tried == 1)
    print(
        f"engine: {name}: {held} of {tried} ({time.monotonic() - began:.0f} s) {detail}", flush=True
    )
    return Held(name, tried, held, detail)


def play(case: Callable[[Scene], Any], folder: Path, seed: str) -> tuple[str, str]:
    """Play one fault.

    Returns:
        What it has to tell, and what did not hold (empty: everything did).
    """
    scene = Scene(folder, seed)
    try:
        return asyncio.run(case(scene)), ""
    except (BrokenPromiseError, EarwitnessError, AssertionError) as error:
        return "", f"{_named(case)}: {type(error).__name__}: {error}"
    finally:
        scene.close()


def _named(case: Callable[[Scene], Any]) -> str:
    if isinstance(case, partial):
        return " ".join([_named(case.func), *map(str, case.keywords.values())])
    return case.__name__


async def _poison_build(scene: Scene) -> str:
    build = PoisonBuild(scene.folder / "build", ROWS, scene.seed)
    run = partial(by_command, env={"PREFECT_HOME": str(scene.folder / "prefect")})
    return await asyncio.to_thread(poison_among, build, run)


def main() -> int:
    """Run this campaign alone.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.engine", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="how often each is tried")
    parser.add_argument("--only", default="", help="part of a promise's name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-engine-") as folder:
        minutes = given.rounds * PASS_MINUTES
        found = run(Path(folder), seed=given.seed, minutes=minutes, only=given.only)
    return int(any(one.failed for one in found))


if __name__ == "__main__":
    sys.exit(main())
