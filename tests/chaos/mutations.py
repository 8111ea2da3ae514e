"""Damaged and oddly encoded clips through probe and decode, each held against a second decoder.

    python -m tests.chaos.mutations --count 200000             all of them
    python -m tests.chaos.mutations --first 4711 --count 1 -v  one of them again

Every file ends as sane audio or as a typed rejection, hangs nobody, and never becomes less sound
than the second decoder hears, unless it is rejected or the cut is recorded. Each file follows from
the seed and its own number.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from earwitness.audio.pool import DecodePool
from earwitness.records import Reason, Rejection
from earwitness.settings import AudioSettings, Silence
from tests.chaos.containers import whole_clips
from tests.chaos.damage import damaged
from tests.chaos.explained import why
from tests.chaos.memory import MemoryWatch
from tests.chaos.odd import HARMLESS, odd
from tests.chaos.outcome import Outcome, decode, outcome_of, probe, try_clip
from tests.chaos.report import Held
from tests.chaos.second_decoder import Heard, listen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

POLICY = AudioSettings(max_duration_s=60, min_duration_s=0, silence=Silence.KEEP)
"""So lenient that little is rejected before it was decoded to its end."""
LISTENED_S = 90.0
"""The second decoder stops there: ours has rejected what is longer than the policy allows."""
TOLERANCE_S = 0.02
TIMEOUT_S = 60.0
"""How long one file may take, on a machine that is busy with more than this."""
SHORTER = "SHORTER"
_SECONDS = (0.3, 0.3, 1.1)
_SEVERAL = 32
_WINDOW = 12
_AGAIN_EVERY = 20
_SAID_EVERY = 2_000
_TOLD = 12
_CRASHES = {Reason.DECODER_CRASH, Reason.DECODE_TIMEOUT}


class Clip(NamedTuple):
    """A file to try."""

    number: int
    container: str
    damage: str
    data: bytes


class Verdict(NamedTuple):
    """A file and what both decoders make of it."""

    number: int
    container: str
    damage: str
    outcome: Outcome
    heard: Heard
    why: str = ""

    @property
    def word(self) -> str:
        """What became of it, as the tables count it."""
        if self.outcome.word != "decoded":
            return self.outcome.word
        if self.outcome.heard_s < self.outcome.duration_s:
            return "cut recorded"
        difference_s = self.outcome.heard_s - self.heard.at_rate_s(self.outcome.rate_hz)
        # the padding of a last frame is not sound
        if difference_s < -TOLERANCE_S - self.heard.padding_s:
            return SHORTER
        return "longer" if difference_s > TOLERANCE_S else "equal"

    @property
    def refused(self) -> bool:
        """Whether it is rejected though nobody knows a reason."""
        if self.outcome.word == "decoded" or not self.heard.clean or self.why:
            return False
        return HARMLESS.issuperset(self.damage.split("+"))

    def told(self) -> str:
        """One line of all that is known."""
        ours = self.outcome
        mine = f"{ours.heard_s:.3f} s" if ours.word == "decoded" else f"{ours.word}: {ours.detail}"
        theirs = (
            f"{self.heard.seconds:.3f} s of {self.heard.container or 'nothing'} "
            f"{self.heard.codec}, {self.heard.bad_packets} of {self.heard.packets} packets bad"
            f"{'' if self.heard.complete else ', not read to its end'}"
        )
        return f"{self.number} {self.container} ({self.damage}): {mine}; FFmpeg: {theirs}"


@cache
def clips_of(seconds: float) -> dict[str, bytes]:
    """Whole clips of so many seconds, with some that need a length to be odd."""
    return whole_clips(seconds)


def clip(seed: int, number: int) -> Clip:
    """One file: the same alone as in the row."""
    dice = random.Random(f"{seed}-audio-{number}")
    clips = clips_of(dice.choice(_SECONDS))
    name = list(clips)[number % len(clips)]
    way = damaged if dice.random() < 0.4 else odd
    damage, data = way(clips, name, dice)
    return Clip(number, name, damage, data)


def judge(folder: Path, seed: int, number: int) -> Verdict:
    """Make one file and let both decoders hear it; runs in a worker."""
    file = clip(seed, number)
    path = folder / f"clip-{os.getpid()}"
    path.write_bytes(file.data)
    ours = outcome_of(
        path, POLICY, lambda: probe(path, POLICY), lambda out: decode(path, out, POLICY)
    )
    heard = listen(path, limit_s=LISTENED_S)
    reason = why(file.data, ours, heard) if ours.word != "decoded" else ""
    return Verdict(number, file.container, file.damage, ours, heard, reason)


def verdicts(
    pool: DecodePool, folder: Path, seed: int, numbers: Iterable[int]
) -> Iterator[Verdict]:
    """Many files, some in flight at once; in order."""
    flying: deque[tuple[list[int], Future[list[Verdict | Rejection]]]] = deque()
    left = iter(numbers)
    while True:
        part = list(islice(left, _SEVERAL))
        if part:
            jobs = [(folder, seed, number) for number in part]
            flying.append((part, pool.submit_each(judge, jobs)))
        if flying and (not part or len(flying) >= _WINDOW):
            asked, future = flying.popleft()
            for number, found in zip(asked, future.result(), strict=True):
                lost = isinstance(found, Rejection)
                yield _alone(pool, folder, seed, number) if lost else found
        elif not part:
            return


def _alone(pool: DecodePool, folder: Path, seed: int, number: int) -> Verdict:
    """A file that ended its worker: whether ours was to blame."""
    file = clip(seed, number)
    path = folder / f"alone-{number}"
    path.write_bytes(file.data)
    outcome = try_clip(pool, path, POLICY)
    path.unlink()
    # else the second decoder was, and there is nothing to hold ours against
    return Verdict(number, file.container, file.damage, outcome, Heard())


class Tally:
    """What became of many files.

    Args:
        seed: Their seed.
        keep: Where files that broke a promise are written.
    """

    def __init__(self, seed: int, keep: Path | None = None) -> None:
        self._seed = seed
        self._keep = keep
        self._by_container: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._by_damage: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._refused: defaultdict[tuple[str, str], list[Verdict]] = defaultdict(list)
        self._again = f"python -m tests.chaos.mutations --seed {seed} --first NUMBER --count 1 -v"
        self.broken: list[Verdict] = []

    def add(self, done: Verdict) -> None:
        """Count a file, and say so where it broke a promise."""
        self._by_container[done.container][done.word] += 1
        self._by_damage[done.damage.partition("+")[0]][done.word] += 1
        if done.refused:
            self._refused[done.container, done.outcome.word].append(done)
        if not done.outcome.sane or done.word == SHORTER or done.word in _CRASHES:
            self.broken.append(done)
            _say(f"BROKEN {done.told()}")
            if self._keep:
                data = clip(self._seed, done.number).data
                self._keep.joinpath(f"{self._seed}-{done.number}").write_bytes(data)

    def print_tables(self) -> None:
        """Outcomes by container and by mutation; and what only the second decoder takes."""
        for table in (self._by_container, self._by_damage):
            for name in sorted(table):
                _say(f"{name:18} {table[name].total():7,}  {_counts(table[name])}")
        totals = self._totals()
        _say(f"{'all':18} {totals.total():7,}  {_counts(totals)}")
        for (name, word), found in sorted(self._refused.items()):
            shown = min(found, key=lambda done: len(done.damage))
            _say(f"rejected for no known reason: {name} {word} {len(found)}, as {shown.told()}")

    def lines(self, took_s: float) -> list[Held]:
        """What was promised of these files, and how often it held."""
        totals = self._totals()
        count = totals.total()
        rate = f"{count / took_s:.0f} files/s"
        return [
            *map(self._container_line, sorted(self._by_container)),
            _line("no file is heard shorter than by FFmpeg", count, totals[SHORTER], self._again),
            _line("no damaged file hangs", count, totals[Reason.DECODE_TIMEOUT], rate),
            _line("none crashes its decoder", count, totals[Reason.DECODER_CRASH], self._again),
        ]

    def _totals(self) -> Counter[str]:
        return sum(self._by_container.values(), Counter())

    def _container_line(self, name: str) -> Held:
        outcomes = self._by_container[name]
        broken = [done for done in self.broken if done.container == name]
        told = [_counts(outcomes), *(done.told() for done in broken[:_TOLD])]
        what = f"damaged {name}: sane and whole audio, or a typed rejection"
        return _line(what, outcomes.total(), len(broken), "; ".join(told))


def mutations(
    folder: Path, *, seed: int, count: int, first: int = 0, keep: Path | None = None
) -> list[Held]:
    """So many files through the workers; tables, and what was promised.

    Args:
        folder: Scratch.
        seed: What is drawn follows from it and from a file's number.
        count: How many.
        first: The first one's number.
        keep: Where files that broke a promise are written.
    """
    tally = Tally(seed, keep)
    known: dict[int, Outcome] = {}
    started = time.monotonic()
    with DecodePool(timeout_s=TIMEOUT_S) as pool, MemoryWatch(0.5) as memory:
        for done in verdicts(pool, folder, seed, range(first, first + count)):
            tally.add(done)
            if done.number % _AGAIN_EVERY == 0:
                known[done.number] = done.outcome
            if (done.number + 1) % _SAID_EVERY == 0:
                rate = (done.number + 1 - first) / (time.monotonic() - started)
                _say(f"{done.number + 1:,}: {len(tally.broken)} broken, {rate:.0f} files/s")
        # the same bytes have the same outcome: it is remembered
        again = verdicts(pool, folder, seed, known)
        differing = [done.number for done in again if known[done.number] != done.outcome]
    tally.print_tables()
    told = f"files {differing[:9]}, seed {seed}" if differing else ""
    return [
        *tally.lines(time.monotonic() - started),
        _line("the same bytes have the same outcome", len(known), len(differing), told),
        memory.worker_line(),
        memory.parent_line(),
    ]


def _line(what: str, tried: int, failed: int, detail: str) -> Held:
    return Held(what, tried, tried - failed, detail)


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in outcomes.most_common())


def _say(text: str) -> None:
    print(f"audio: {text}", flush=True)


def main() -> int:
    """Read the command line and try the files.

    Returns:
        The exit status: 1 where a promise was broken.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutations", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="what is drawn follows from it")
    parser.add_argument("--first", type=int, default=0, help="the number of the first file")
    parser.add_argument("--count", type=int, default=200_000, help="how many files")
    parser.add_argument("--keep", type=Path, help="a folder for files that broke a promise")
    parser.add_argument("-v", action="store_true", help="say of each file what became of it")
    given = parser.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name)
        if given.v:
            numbers = range(given.first, given.first + given.count)
            with DecodePool() as pool:
                for done in verdicts(pool, folder, given.seed, numbers):
                    print(f"{done.word:16} {done.told()}")
                    if given.keep:
                        data = clip(given.seed, done.number).data
                        given.keep.joinpath(f"{given.seed}-{done.number}").write_bytes(data)
            return 0
        held = mutations(
            folder, seed=given.seed, count=given.count, first=given.first, keep=given.keep
        )
    for one in held:
        told = f"BROKEN ({one.detail})" if one.failed else "held  "
        print(told, f"{one.held:,} of {one.tried:,}", one.what)
    return 1 if any(one.failed for one in held) else 0


if __name__ == "__main__":
    # by its real name: workers import what they are sent
    from tests.chaos import mutations as campaign

    sys.exit(campaign.main())
