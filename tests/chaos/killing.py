"""One build, killed again and again at random instants, then left to end."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from earwitness.scratch import sweep_scratch
from tests.chaos.builds import (
    BrokenPromiseError,
    Reference,
    Run,
    builds,
    check_published,
    hold,
    stage,
    steps,
    stored_answers,
)
from tests.chaos.servers import Bench, PrefectServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_KILLS_A_BUILD = 8
AT_START, START = 0.2, 1.5
"""So many kills come within this many times the time an undisturbed build takes to plan."""
HASTE = 0.5
"""Of what is left to be written, the part in which the next kill falls: builds are killed often."""
ENGINE_FLAGS = ("--latency-s", "0.05", "--slots", "32")
STYLES = {
    "given": ("group", "alone", "decode worker", "fork server"),
    "own engine": ("group", "alone", "decode worker", "engine", "guardian"),
    "own server": ("group", "alone", "engine", "Prefect server", "server's guardian"),
    "given server": ("group", "alone", "given Prefect server", "decode worker"),
}
WEIGHTS = {"given": 6, "own engine": 6, "own server": 3, "given server": 3}
WHOLE = {"group", "alone"}


@dataclass
class Kill:
    """One kill: what was hit, when after the start, and how far the build was."""

    what: str
    at_s: float
    stage: str

    def __str__(self) -> str:
        return f"{self.what} after {self.at_s:.2f} s ({self.stage})"


@dataclass
class Disturbed:
    """What came of one build."""

    number: int
    style: str
    storage: str
    kills: list[Kill] = field(default_factory=list)
    lost: int = 0
    most_lost: float = 0.0
    ended_clearly: int = 0
    broken: str = ""

    def __str__(self) -> str:
        hits = ", ".join(map(str, self.kills))
        told = f"BROKEN: {self.broken}" if self.broken else "identical"
        return f"build {self.number} ({self.style}, {self.storage}): {hits}: {told}"


class Site:
    """Where one build goes, and how it is started.

    Args:
        work: The servers.
        storage: local or s3.
        style: Which parts are the build's own.
        name: Of its folders.
    """

    def __init__(self, work: Bench, storage: str, style: str, name: str) -> None:
        self._work, self._style = work, style
        self.home = work.folder / name
        self.scratch = self.home / "scratch"
        self.scratch.mkdir(parents=True)
        self._count_file = self.home / "asked"
        self._count_file.touch()
        self._asked_before = work.engine.asked()
        root = str(work.folder / "local") if storage == "local" else "s3://lake"
        self.output = (work.folder / "local" if storage == "local" else work.s3.folder / "lake") / (
            f"out-{name}"
        )
        self._words = [f"{root}/m.jsonl", f"{root}/out-{name}", *work.layout.words()]
        self._env = {**work.env, "EARWITNESS_SCRATCH": str(self.scratch)}
        self._env["XDG_STATE_HOME"] = str(self.home / "state")
        self.server: PrefectServer | None = None
        if style == "own server":
            del self._env["PREFECT_API_URL"]
            self._env["PREFECT_HOME"] = str(self.home / "prefect")
        if style == "given server":
            self.server = PrefectServer(self.home / "prefect")
            self.server.start()
            self._env |= self.server.env

    @property
    def own_engine(self) -> bool:
        return self._style in {"own engine", "own server"}

    def start(self) -> Run:
        if not self.own_engine:
            return Run(*self._words, "--engine", self._work.engine.url, env=self._env)
        command = [sys.executable, "-m", "tests.support.standin", *self._work.engine_flags]
        command += ["--count-file", str(self._count_file)]
        model = self._work.folder / "model"
        words = ("--model", model, "--command", shlex.join(command))
        return Run(*self._words, *words, env=self._env)

    def asked(self) -> int:
        """Requests the engine received for this build, by its own count."""
        if self.own_engine:
            return self._count_file.stat().st_size
        return self._work.engine.asked() - self._asked_before

    @property
    def window_rows(self) -> int:
        return self._work.layout.window_rows

    @property
    def published(self) -> bool:
        return (self.output / "latest.json").exists()

    def serve(self) -> None:
        """Have the given Prefect server answer."""
        if self.server is not None:
            self.server.ready()

    def strike_server(self) -> None:
        """Kill the given Prefect server and start it again, as its unit file would."""
        if self.server is not None:
            self.server.kill()
            self.server.start(wait=False)

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()

    def clear(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.output, ignore_errors=True)


def reference(work: Bench, storage: str, style: str) -> Reference:
    """The undisturbed build that one of a style has to equal; made once."""
    kind = "own engine" if style in {"own engine", "own server"} else "given"
    known = work.references.get((storage, kind))
    if known is None:
        site = Site(work, storage, kind, f"undisturbed-{storage}-{kind.replace(' ', '-')}")
        run = site.start()
        run.until(lambda: builds(site.output, "plan.json"))
        start_s = time.monotonic() - run.began_s
        most = [0]
        run.until(lambda: most.append(max(most[-1], steps(site.output))))
        run.finish()
        known = Reference.of(site.output, site.asked(), start_s, most[-1])
        hold(known.asked == known.counts["generated"], f"asked {known.asked}: {known.counts}")
        work.references[storage, kind] = known
        took_s = time.monotonic() - run.began_s
        print(f"kills: undisturbed, {storage}, {kind}: {took_s:.1f} s, asked {known.asked}")
        site.close()
    return known


def disturb(work: Bench, seed: int, number: int, most: int = MOST_KILLS_A_BUILD) -> Disturbed:
    """Kill one build again and again, let it end, and look whether anything shows."""
    chance = random.Random(f"{seed}-kills-{number}")
    (style,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
    found = Disturbed(number, style, ("local", "s3")[number % 2])
    try:
        undisturbed = reference(work, found.storage, style)
    except BrokenPromiseError as error:
        found.broken = f"the undisturbed build: {error}"
        return found
    site = Site(work, found.storage, style, f"build-{number}")
    try:
        wanted = min(most, chance.randint(5, MOST_KILLS_A_BUILD))
        while len(found.kills) < wanted and not site.published:
            _one_run(site, chance, found, undisturbed, wanted)
        if site.published:
            sweep_scratch(site.scratch)  # as the next build's start would
        else:
            site.serve()
            site.start().finish()
        lost, limit = site.asked() - undisturbed.asked, work.layout.window_rows * len(found.kills)
        hold(lost <= limit, f"{lost} asked again, {limit} are allowed")
        found.lost = lost
        check_published(site.output, undisturbed, site.scratch)
        site.clear()
    except (BrokenPromiseError, OSError, ValueError) as error:
        found.broken = f"{type(error).__name__}: {error}"
    finally:
        site.close()
    return found


def _one_run(
    site: Site, chance: random.Random, found: Disturbed, undisturbed: Reference, wanted: int
) -> None:
    """Start the build once and kill parts of it until it ends."""
    lost_before = site.asked() - _stored(site, undisturbed)
    site.serve()
    run = site.start()
    here = 0
    while len(found.kills) < wanted:
        order = chance.sample(STYLES[found.style], k=len(STYLES[found.style]))
        if _let_run(site, run, undisturbed, chance):
            break
        what, hit = _choose(site, run, order)
        found.kills.append(Kill(what, time.monotonic() - run.began_s, stage(site.output)))
        here += 1
        hit()
        if what in WHOLE:
            break
    status, said = run.end()
    if status > 0:
        _check_clear(status, said, here)
        found.ended_clearly += 1
    lost = site.asked() - _stored(site, undisturbed) - lost_before
    found.most_lost = max(found.most_lost, lost / max(here, 1))
    limit = here * site.window_rows
    hold(lost <= limit, f"{lost} answers lost by {here} kills in one run; {limit} are allowed")


def _let_run(site: Site, run: Run, undisturbed: Reference, chance: random.Random) -> bool:
    """Let a build run to a drawn share of what it still has to write; True when it ended before."""
    share, early, pause_s = chance.random(), chance.random() < AT_START, chance.uniform(0, 0.4)
    now_s = time.monotonic() - run.began_s
    if early and now_s < 1:
        return run.wait(share * START * undisturbed.start_s)
    done = steps(site.output)
    goal = done + max(1, round(HASTE * share * (undisturbed.steps - done)))
    if run.until(lambda: steps(site.output) >= goal):
        return True
    return run.wait(time.monotonic() - run.began_s + pause_s)


def _choose(site: Site, run: Run, order: Sequence[str]) -> tuple[str, Callable[[], None]]:
    """The first of the targets that is there, and how it is hit."""
    there = run.parts()
    for what in order:
        if what in WHOLE:
            return what, partial(run.hit, group=what == "group")
        if what == "given Prefect server" and site.server is not None:
            return what, site.strike_server
        if there.get(what):
            return what, partial(_strike, there[what][0])
    return "group", partial(run.hit, group=True)


def _strike(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _check_clear(status: int, said: str, kills: int) -> None:
    """A build may end because a part of it was killed, with one clear line."""
    hold(kills, f"ended with {status} though nothing was killed: {said[-2000:]}")
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    hold(told and "Traceback" not in said, f"no clear line: {said[-2000:]}")


def _stored(site: Site, undisturbed: Reference) -> int:
    return undisturbed.asked if site.published else stored_answers(site.output)
