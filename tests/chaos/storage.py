"""Builds on object storage that has a bad day: a share of its calls fails, all do, or it says no.

What must hold: the dataset is the undisturbed one to the byte, nothing is rejected or remembered
because of what passed, an outage is told in one line, and what was answered is not asked again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.chaos.builds import (
    BrokenPromiseError,
    Layout,
    Reference,
    Run,
    check_published,
    hold,
)
from tests.chaos.fault_proxy import FaultProxy
from tests.chaos.report import Held
from tests.chaos.servers import Bench, bench
from tests.integration.workbench import record, tone, write_clip, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CLIENT = {"config_kwargs": {"read_timeout": 2, "connect_timeout": 2}}
STALL_S = 3.0
DENIED = {r"\w+ /\S*/clips/denied\.wav": "AccessDenied"}
SHORT_PATIENCE_S, MINUTE_S = 6.0, 60.0
CHECKPOINT_FAILURES = 16
"""More than the requests of one task's attempt at writing a segment."""

MOMENTS = {
    "reading the manifest": r"GET \S*/m\.jsonl",
    "planning": r"PUT \S*/plan/shard-00001\.jsonl",
    "resolving": r"PUT \S*/work/shard-00001/resolved",
    "fetching": r"GET \S*/clips/7\.wav",
    "checkpointing": r"PUT \S*/work/shard-0000[01]/batch-00002-",
    "storing": r"PUT \S*/data/shard-00001-",
    "the receipt": r"PUT \S*/receipts/shard-00000\.json",
    "publishing": r"PUT \S*/build\.json",
}
CODES = ("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch")


def write_lake(folder: Path, layout: Layout) -> Path:
    """Clips and a manifest: among them one that is missing, one denied, one silent."""
    for number in range(layout.clips):
        write_clip(folder / "clips" / f"{number}.wav", tone(200 + 11 * number, 0.08))
    write_clip(folder / "clips" / "silent.wav", tone(300) * 0)
    write_clip(folder / "clips" / "denied.wav", tone(333))
    names = {13: "none", 27: "denied", 41: "silent"}
    records = [
        record(f"clips/{names.get(row % 67, row % layout.clips)}.wav", f"Number {row}?", id=row)
        for row in range(layout.rows)
    ]
    return write_manifest(folder / "m.jsonl", records)


@dataclass
class Weather:
    """Builds over one dataset behind one proxy."""

    bench: Bench
    proxy: FaultProxy
    layout: Layout
    seed: int
    undisturbed: Reference = field(init=False)
    _number: int = 0

    @property
    def scratch(self) -> Path:
        return self.bench.folder / "scratch"

    def env(self, patience_s: float | None) -> dict[str, str]:
        limit = {} if patience_s is None else {"EARWITNESS_STORAGE_PATIENCE_S": str(patience_s)}
        self.scratch.mkdir(exist_ok=True)
        return {
            **{name: text for name, text in self.bench.env.items() if "PATIENCE" not in name},
            **limit,
            "AWS_ENDPOINT_URL": self.proxy.url,
            "FSSPEC_S3": json.dumps(CLIENT),
            "EARWITNESS_SCRATCH": str(self.scratch),
        }

    def new(self) -> Path:
        """Where a build goes that nobody has begun."""
        self._number += 1
        return self.bench.s3.folder / "lake2" / f"out-{self._number}"

    def build(self, output: Path, *, patience_s: float | None = None) -> Run:
        uri = f"s3://lake2/{output.name}"
        engine = ("--engine", self.bench.engine.url, "--name", "twin")
        words = ("s3://lake2/m.jsonl", uri, *engine, *self.layout.words())
        return Run(*words, env=self.env(patience_s))

    def calm(self) -> None:
        self.proxy.quiet()
        self.proxy.refused = dict(DENIED)

    def measure(self) -> None:
        """The undisturbed build, which all others must equal."""
        output, before = self.new(), self.bench.engine.asked()
        self.calm()
        self.build(output).finish()
        asked = self.bench.engine.asked() - before
        self.undisturbed = Reference.of(output, asked)
        reasons = self.undisturbed.counts["reasons"]
        hold(set(reasons) == {"clip_missing", "access_denied", "silent"}, f"rejected: {reasons}")

    def check(self, output: Path, asked: int, allowed: int) -> None:
        # what no listing showed when work/ was removed may stay; it harms nobody
        for work in output.glob("builds/*/work"):
            shutil.rmtree(work)
        check_published(output, self.undisturbed, self.scratch)
        most = self.undisturbed.asked + allowed
        hold(self.undisturbed.asked <= asked <= most, f"{asked} were asked, at most {most} may be")


@contextmanager
def weather(
    folder: Path, layout: Layout, seed: int, *, prefect: str | None = None
) -> Iterator[Weather]:
    """Servers, a proxy, a dataset, and the build that nothing disturbed."""
    folder.mkdir(parents=True, exist_ok=True)
    small = Layout(rows=1, shard_rows=1, batch_rows=1, clips=1)
    with bench(folder, small, "--latency-s", "0.01", prefect=prefect) as servers:
        write_lake(servers.s3.folder / "lake2", layout)
        with FaultProxy(servers.s3.url, str(seed), stall_s=STALL_S) as proxy:
            found = Weather(servers, proxy, layout, seed)
            found.measure()
            yield found


def one_fifth_fails(sky: Weather, turn: int, late_s: float = 1.0) -> str:
    """A fifth of all calls fails, and listings are late: nobody notices but by the clock."""
    sky.proxy.seed = f"{sky.seed}-{turn}"
    sky.proxy.done.clear()
    output, before = sky.new(), sky.bench.engine.asked()
    sky.proxy.rate, sky.proxy.late_s = 0.2, late_s
    began = time.monotonic()
    sky.build(output).finish()
    took_s = time.monotonic() - began
    sky.calm()
    sky.check(output, sky.bench.engine.asked() - before, 0)
    done = ", ".join(f"{kind} {n}" for kind, n in sorted(sky.proxy.done.items()))
    return f"{took_s:.0f} s; {done}"


def listings_are_late(sky: Weather, _turn: int) -> str:
    """No listing shows what was written in the last seconds: it is there all the same."""
    sky.proxy.done.clear()
    output, before = sky.new(), sky.bench.engine.asked()
    sky.proxy.late_s = 20.0
    sky.build(output).finish()
    sky.calm()
    hidden = sky.proxy.done["late listing"]
    hold(hidden > 0, "no listing was late")
    sky.check(output, sky.bench.engine.asked() - before, 0)
    return f"{hidden} objects not listed"


def _fails_and_goes_on(
    sky: Weather, act: Callable[[], None], told: tuple[str, ...], *, turn: int, patience_s: float
) -> str:
    """A build that is stopped by what `act` does to storage, and the same command afterwards."""
    chance = random.Random(f"{sky.seed}-moment-{turn}")
    moment = list(MOMENTS)[turn % len(MOMENTS)] if turn < 2 * len(MOMENTS) else ""
    moment = moment or chance.choice(list(MOMENTS))
    output, before = sky.new(), sky.bench.engine.asked()
    sky.proxy.seed = f"{sky.seed}-outage-{turn}"
    sky.proxy.at(MOMENTS[moment], act)
    began = time.monotonic()
    status, said = sky.build(output, patience_s=patience_s).end()
    took_s = time.monotonic() - began
    last = said.strip().splitlines()[-1] if said.strip() else ""
    where = f"while {moment}, after {took_s:.0f} s: "
    hold(status == 1, f"{where}it ended with {status}: {said[-500:]}")
    hold(last.startswith("error: "), f"{where}no clear line: {said[-1000:]}")
    hold(any(word in last for word in told), f"{where}not told: {last}")
    hold("Traceback" not in said, f"{where}a traceback: {said[-1000:]}")
    hold(not (output / "latest.json").exists(), f"{where}published")
    sky.calm()
    sky.build(output).finish()
    sky.check(output, sky.bench.engine.asked() - before, sky.layout.window_rows)
    return f"{moment} ({took_s:.0f} s): {last}"


def a_checkpoint_fails(sky: Weather, turn: int) -> str:
    """One batch's segment cannot be written until its task is tried again: nothing shows."""
    output, before = sky.new(), sky.bench.engine.asked()
    batch = r"PUT \S*/work/shard-0000[01]/batch-0000[012]-"
    sky.proxy.seed = f"{sky.seed}-checkpoint-{turn}"
    failures = CHECKPOINT_FAILURES
    sky.proxy.at(batch, lambda: [sky.proxy.force(batch, "InternalError") for _ in range(failures)])
    sky.proxy.done.clear()
    said = sky.build(output, patience_s=0.5).finish()
    failed = sky.proxy.done["InternalError"]
    hold(failed == failures, f"{failed} of {failures} writes failed: {said}")
    sky.calm()
    sky.check(output, sky.bench.engine.asked() - before, 0)
    return f"{failed} writes failed"


def everything_fails(sky: Weather, turn: int, patience_s: float) -> str:
    """Storage is down until the shard fails; the same command then completes."""

    def act() -> None:
        sky.proxy.rate = 1.0

    told = ("does not answer", "clips could not be fetched", "storage")
    return _fails_and_goes_on(sky, act, told, turn=turn, patience_s=patience_s)


def credentials_end(sky: Weather, turn: int) -> str:
    """Credentials are refused from some moment on: the shard fails and rejects nothing."""
    code = CODES[turn % len(CODES)]

    def act() -> None:
        sky.proxy.refused = {".*": code}

    told = (f"refused the credentials ({code})",)
    return _fails_and_goes_on(sky, act, told, turn=turn, patience_s=SHORT_PATIENCE_S)


def attempt(tell: Callable[[str], None], name: str, seed: int, work: Callable[[], str]) -> Held:
    """Try once; a broken promise names its seed."""
    try:
        detail = work()
    except (BrokenPromiseError, OSError, ValueError, RuntimeError) as error:
        again = f"python -m tests.chaos --only storage --seed {seed}"
        detail = f"seed {seed}: {type(error).__name__}: {error} ({again})"
        tell(f"{name}: BROKEN {detail}")
        return Held(name, 1, 0, detail)
    tell(f"{name}: held ({detail})")
    return Held(name, 1, 1, detail)


def run(folder: Path, *, seed: int, minutes: float) -> list[Held]:
    """The campaign.

    Args:
        folder: An empty scratch folder.
        seed: Of all chance.
        minutes: About how long it may take; one round takes some four.
    """

    def tell(text: str) -> None:
        print(f"storage: {text}", flush=True)

    os.environ.pop("EARWITNESS_STORAGE_PATIENCE_S", None)
    layout = Layout(rows=2_000, shard_rows=700, batch_rows=175, window=2, clips=200)
    end = time.monotonic() + minutes * 60
    found: list[Held] = []
    turn = random.Random(f"{seed}-first").randrange(len(MOMENTS))
    with weather(folder / "weather", layout, seed) as sky:
        tell(f"undisturbed: {sky.undisturbed.counts['reasons']}")
        rounds: dict[str, Callable[[int], str]] = {
            "20 % of calls fail: identical, nothing rejected, nothing asked twice": (
                lambda turn: one_fifth_fails(sky, turn)
            ),
            "100 % fail for a minute: told in one line; the same command completes": (
                lambda turn: everything_fails(sky, turn, MINUTE_S)
            ),
            "credentials end: told, none rejected; the same command completes": (
                lambda turn: credentials_end(sky, turn)
            ),
            "a checkpoint cannot be written: its task is tried again, identical": (
                lambda turn: a_checkpoint_fails(sky, turn)
            ),
            "listings 20 s late: identical": lambda turn: listings_are_late(sky, turn),
        }
        while not found or time.monotonic() < end:
            for name, act in rounds.items():
                sky.calm()
                found.append(attempt(tell, name, seed, lambda act=act, turn=turn: act(turn)))
            turn += 1
    return summed(found)


def summed(found: list[Held]) -> list[Held]:
    """One line for each promise; what failed is told first."""
    names = dict.fromkeys(one.what for one in found)
    table: list[Any] = []
    for name in names:
        tries = [one for one in found if one.what == name]
        worst = min(tries, key=lambda one: one.held)
        table.append(Held(name, len(tries), sum(one.held for one in tries), worst.detail))
    return table
