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
