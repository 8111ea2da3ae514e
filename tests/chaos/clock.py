"""Clocks that jump, an hour or a year, ahead or back, while builds run and between them.

The clock is libfaketime's (Debian's package `faketime`), read from a file that changes while the
build runs. What counts for time-outs, the monotonic clock, goes on as it does on a real machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import earwitness
from tests.chaos.builds import (
    BrokenPromiseError,
    Reference,
    Run,
    builds,
    check_published,
    files,
    hold,
    stored_answers,
)
from tests.chaos.report import Held
from tests.chaos.servers import Bench, start_plain, undisturbed
from tests.integration.workbench import Published

if TYPE_CHECKING:
    from collections.abc import Callable

JUMPS = {
    "an hour ahead": "+3600",
    "an hour back": "-3600",
    "a year ahead": "+1y",
    "a year back": "-1y",
}
RIGHT = "+0"


def library() -> Path | None:
    """Where libfaketime is."""
    return next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


@dataclass
class Clocked:
    """Builds of one output under a clock that can be set.

    Args:
        work: The servers.
        name: Of its folders.
    """

    work: Bench
    name: str

    def __post_init__(self) -> None:
        self.home = self.work.folder / f"clock-{self.name.replace(' ', '-')}"
        self.scratch, self.output = self.home / "scratch", self.home / "out"
        self.scratch.mkdir(parents=True)
        self._clock = self.home / "clock"
        self.set(RIGHT)

    def set(self, offset: str) -> None:
        """Let the clock jump; running builds see it within a second."""
        waiting = self._clock.with_suffix(".new")
        waiting.write_text(offset)
        waiting.replace(self._clock)

    def start(self, *more: str) -> Run:
        return start_plain(self.work, self.output, self.scratch, *more, env=self.fake)

    @property
    def fake(self) -> dict[str, str]:
        """What makes a process see this clock."""
        return {
            "LD_PRELOAD": str(library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def pointed(self) -> str:
        return Published(self.output).folder.name


def jump_while_it_runs(work: Bench, name: str, reference: Reference) -> None:
    """The clock jumps in mid-generation, and jumps back before the end."""
    build = Clocked(work, name)
    run = build.start()
    run.until(lambda: stored_answers(build.output))
    build.set(JUMPS[name])
    run.finish()
    check_published(build.output, reference, build.scratch)


def jump_between(work: Bench, name: str, reference: Reference) -> None:
    """A build killed under a wrong clock is continued under the right one."""
    build = Clocked(work, f"killed {name}")
    build.set(JUMPS[name])
    run = build.start()
    before = run.until(lambda: stored_answers(build.output))
    hold(not before, "it ended before it could be killed")
    run.hit(group=True)
    run.end()
    build.set(RIGHT)
    said = build.start().finish()
    hold("(continued)" in said, f"it was begun anew: {said[-300:]}")
    check_published(build.output, reference, build.scratch)


def planned_in_the_future(work: Bench, _name: str, reference: Reference) -> None:
    """A build published under a clock a year ahead is followed by the next one all the same."""
    build = Clocked(work, "planned ahead")
    build.set(JUMPS["a year ahead"])
    build.start().finish()
    # when a run was planned its Prefect server says, whose clock was right: as if it had not been
    folder = Published(build.output).folder
    for path in (build.output / "latest.json", folder / "plan.json", folder / "build.json"):
        written = path.read_text()
        year = re.findall(r'"planned_at": ?"(\d{4})-', written)[0]
        path.write_text(re.sub(rf'("planned_at": ?"){year}', rf"\g<1>{int(year) + 1}", written))
    asked = work.engine.asked()
    build.set(RIGHT)
    build.start("--new").finish()
    hold(build.pointed() != folder.name, "latest.json points at the build planned in the future")
    hold(work.engine.asked() == asked, "answers were asked again")
    hold(files(build.output) == reference.files, "the second build differs")
    earwitness.load(str(build.output))
    hold(len(builds(build.output, "build.json")) == 2, "a build is gone")


def turn_clocks(work: Bench, *, most: int = 9) -> Held:
    """Try the jumps, as many as asked for."""
    what = "clock jumps an hour or a year, ahead and back, during a build and between builds"
    if library() is None:
        return Held(what, 0, 0, "NOT TRIED: libfaketime is not installed (Debian: faketime)")
    reference = undisturbed(work)
    tries: list[tuple[Callable[[Bench, str, Reference], Any], str]] = [
        (planned_in_the_future, "planned a year ahead"),
        *((jump_between, name) for name in ("a year ahead", "a year back")),
        *((jump_while_it_runs, name) for name in JUMPS),
        *((jump_between, name) for name in ("an hour ahead", "an hour back")),
    ]
    held, detail = 0, ""
    for attempt, name in tries[:most]:
        try:
            attempt(work, name, reference)
            held += 1
        except (BrokenPromiseError, OSError, ValueError) as error:
            detail += f"\n  {attempt.__name__}, {name}: {type(error).__name__}: {error}"
        print(f"kills: clock: {attempt.__name__}, {name}: {held} held", flush=True)
    return Held(what, len(tries[:most]), held, detail)
