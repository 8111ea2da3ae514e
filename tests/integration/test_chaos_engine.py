"""The engine's faults, the short form: each promise once, and some of the garbage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest

from earwitness.settings import EngineSettings, LayoutSettings
from tests.chaos.engine import play
from tests.chaos.engine_builds import SLOTS, PoisonBuild, poison_among
from tests.chaos.engine_cases import (
    CASES,
    MEMORY,
    garbage_at_times,
    garbage_for_a_while,
    garbage_for_good,
    too_little_memory,
)
from tests.chaos.engine_scene import Running
from tests.integration.workbench import Published

if TYPE_CHECKING:
    from pathlib import Path

SEED = "short"
ROWS = 500
OTHERS = {
    **{log: partial(too_little_memory, log=log, advice=told) for log, told in MEMORY.items()},
    "no text as content": partial(garbage_at_times, kind="null-content"),
    "half an answer": partial(garbage_at_times, kind="cut"),
    "a proxy's page for seconds": partial(garbage_for_a_while, kind="html-502"),
    "a refusal that is the proxy's": partial(garbage_for_good, kind="html-400"),
    "a reply without end": partial(garbage_for_good, kind="endless"),
    "half a character": partial(garbage_for_good, kind="half-surrogate"),
}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory):
    """All cases, some at a time: they wait more than they work."""
    cases = {**CASES, **OTHERS}
    with ThreadPoolExecutor(6) as pool:
        futures = {
            name: pool.submit(play, case, tmp_path_factory.mktemp("case"), f"{SEED}-{name}")
            for name, case in cases.items()
        }
        yield futures


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_it_holds_that(played, name: str):
    _, broken = played[name].result()
    assert not broken


def test_a_poison_clip_among_many_is_one_row_and_is_remembered(tmp_path: Path, build):
    def run(poisoned: PoisonBuild) -> None:
        engine = EngineSettings(command=tuple(poisoned.command), max_num_seqs=SLOTS)
        layout = LayoutSettings(**poisoned.layout)
        build(
            poisoned.manifest,
            poisoned.output,
            model=str(poisoned.model),
            engine=engine,
            layout=layout,
        )

    poison_among(PoisonBuild(tmp_path / "build", ROWS, SEED), run)


def test_a_clip_that_kills_a_given_engine_is_convicted_by_the_third_build(tmp_path: Path, build):
    poisoned = PoisonBuild(tmp_path / "build", 60, SEED)
    flags = ("--crash-on", poisoned.poison, "--latency-s", "0.05")
    stand_in = Running(tmp_path / "stand-in.log", flags)
    reasons = []
    with stand_in.kept_running():
        for _ in range(4):
            engine = EngineSettings(url=(stand_in.url,), max_num_seqs=8)
            counts = build(poisoned.manifest, poisoned.output, engine=engine)
            (rejected,) = Published(poisoned.output).rejections()
            assert (rejected["id"], counts["answered"]) == (poisoned.poison_row, 59)
            reasons.append(rejected["earwitness"]["reason"])
    assert reasons == ["engine_died", "engine_died", "engine_crash", "engine_crash"]
