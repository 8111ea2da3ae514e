"""Damaged clips of every container through the real probe and decode workers, and bombs.

Every file ends as sane audio or as a typed rejection; no file takes the batch along, hangs, or
makes a worker take memory in proportion to what it claims.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import time
import wave
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple

from earwitness.audio.workers import DecodePool
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Stage
from earwitness.settings import AudioSettings, TooLong
from tests.chaos.bombs import HOURS, bombs
from tests.chaos.containers import whole_clips
from tests.chaos.damage import damaged
from tests.chaos.memory import MemoryWatch
from tests.chaos.report import Held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from earwitness.audio.decode import DecodedClip

FILES_PER_MINUTE = 1_000
MIN_FILES = 2_000
MAX_FILES = 10_000
TIMEOUT_S = 60.0
"""How long one file may take, on a machine that is busy with more than this."""
_WINDOW = 64
_AGAIN_EVERY = 20
POLICY = AudioSettings(max_duration_s=30)


class Outcome(NamedTuple):
    """What became of one file.

    Attributes:
        word: `decoded`, a rejection's reason, or what went wrong for ours.
        detail: The rejection's text, or the digest of the audio.
        sane: False when a promise was broken.
    """

    word: str
    detail: str
    sane: bool = True


class Clip(NamedTuple):
    """A file to try."""

    number: int
    container: str
    damage: str
    data: bytes


def run(folder: Path, *, seed: int, minutes: float) -> list[Held]:
    """The campaign: see the module."""
    count = int(min(MAX_FILES, max(MIN_FILES, minutes * FILES_PER_MINUTE)))
    return [
        *mutations(folder, seed=seed, count=count),
        *try_bombs(folder),
        native_crashes(folder, seed=seed),
    ]


def mutations(folder: Path, *, seed: int, count: int) -> list[Held]:
    """So many damaged files through the workers; their outcomes by container."""
    again_with = f"python -m tests.chaos --only audio --seed {seed}"
    table: dict[str, Counter[str]] = {}
    bad: list[tuple[Clip, Outcome]] = []
    differing: list[int] = []
    repeated = 0
    started = time.monotonic()
    with DecodePool(timeout_s=TIMEOUT_S) as pool, MemoryWatch() as memory:
        known: dict[int, Outcome] = {}
        for clip, outcome in _outcomes(pool, folder, _clips(seed, count)):
            table.setdefault(clip.container, Counter())[outcome.word] += 1
            if clip.number % _AGAIN_EVERY == 0:
                known[clip.number] = outcome
            if not outcome.sane:
                bad.append((clip, outcome))
            if clip.number % 1_000 == 999:
                _say(f"{clip.number + 1:,} files")
        # the same bytes have the same outcome: it is remembered
        for clip, outcome in _outcomes(pool, folder, _clips(seed, count, _AGAIN_EVERY)):
            repeated += 1
            if known[clip.number] != outcome:
                differing.append(clip.number)
    print_table(table)
    totals: Counter[str] = sum(table.values(), Counter())
    lines = [
        Held(
            f"damaged {name}: sane audio or a typed rejection",
            table[name].total(),
            table[name].total() - sum(clip.container == name for clip, _ in bad),
            "; ".join(
                [_counts(table[name]), *(_told(*one) for one in bad if one[0].container == name)]
            ),
        )
        for name in sorted(table)
    ]
    hangs, crashes = totals[Reason.DECODE_TIMEOUT], totals[Reason.DECODER_CRASH]
    took_s = time.monotonic() - started
    lines += [
        Held(
            "no damaged file hangs",
            count,
            count - hangs,
            f"{count / took_s:.0f} files/s, {again_with}",
        ),
        Held("none crashes its decoder", count, count - crashes, again_with),
        Held(
            "the same bytes have the same outcome",
            repeated,
            repeated - len(differing),
            f"files {differing[:9]}, {again_with}" if differing else "",
        ),
        memory.worker_line(),
        memory.parent_line(),
    ]
    return lines


def _clips(seed: int, count: int, step: int = 1) -> Iterator[Clip]:
    """The damaged files, each from its own number: the same alone as in the row."""
    clips = whole_clips()
    for number, name in islice(enumerate(cycle(clips)), 0, count, step):
        dice = random.Random(f"{seed}-audio-{number}")
        damage, data = damaged(clips, name, dice)
        yield Clip(number, name, damage, data)


def _outcomes(
    pool: DecodePool, folder: Path, clips: Iterator[Clip]
) -> Iterator[tuple[Clip, Outcome]]:
    """Clips through the pool, a window of them in flight; outcomes in their order."""
    flying: deque[tuple[Clip, Path, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(_WINDOW) as threads:
        while True:
            clip = next(clips, None)
            if clip is not None:
                path = folder / f"clip-{clip.number}"
                path.write_bytes(clip.data)
                flying.append((clip, path, threads.submit(try_clip, pool, path, POLICY)))
            if flying and (clip is None or len(flying) >= _WINDOW):
                done, path, future = flying.popleft()
                yield done, future.result()
                path.unlink()
            elif clip is None:
                return


def try_clip(pool: DecodePool, path: Path, policy: AudioSettings) -> Outcome:
    """Validate and decode a file as a build does, and look hard at what came out."""
    out = path.with_suffix(".wav")
    try:
        pool.probe(path, policy).result()
        clip = pool.decode(path, out, policy).result()
        problem = _insane(out, clip, policy)
        if problem:
            return Outcome("insane", problem, sane=False)
        return Outcome("decoded", hashlib.sha256(out.read_bytes()).hexdigest())
    except BadRecordError as error:
        rejection = error.rejection
        placed = rejection.stage in {Stage.VALIDATE, Stage.DECODE}
        left = out.exists()
        readable = rejection.detail.isprintable() and 0 < len(rejection.detail) < 300
        return Outcome(rejection.reason, rejection.detail, placed and readable and not left)
    except Exception as error:  # noqa: BLE001 - exactly what must not happen, told in the table
        return Outcome(f"raised {type(error).__name__}", str(error)[:200], sane=False)
    finally:
        out.unlink(missing_ok=True)


def _insane(out: Path, clip: DecodedClip, policy: AudioSettings) -> str:
    """What is wrong with decoded audio; empty when nothing is. 16-bit samples are finite."""
    with wave.open(str(out), "rb") as audio:
        form = (audio.getnchannels(), audio.getsampwidth(), audio.getframerate())
        seconds = audio.getnframes() / audio.getframerate()
    limit_s = policy.max_duration_s or 0.0
    if form != (1, 2, policy.sample_rate_hz):
        return f"channels, bytes and rate are {form}"
    if abs(seconds - clip.heard_s) > 0.001 or not 0 < seconds <= limit_s + 0.001:
        return f"{seconds} s are there, {clip.heard_s} announced, {limit_s} allowed"
    if clip.duration_s < clip.heard_s:
        return f"{clip.heard_s} s heard of {clip.duration_s}"
    return ""


def try_bombs(folder: Path, hours: int = HOURS) -> list[Held]:
    """Hours in a small file: refused, or cut, in bounded memory and time."""
    tried, refused, slowest_s = 0, 0, 0.0
    broken: list[str] = []
    cut = AudioSettings(max_duration_s=30, too_long=TooLong.CUT)
    with DecodePool(1, timeout_s=TIMEOUT_S) as pool, MemoryWatch() as memory:
        for name, data in bombs(hours):
            path = folder / "bomb"
            path.write_bytes(data)
            for policy in (POLICY, cut) if name.startswith("flac") else (POLICY,):
                started = time.monotonic()
                outcome = try_clip(pool, path, policy)
                slowest_s = max(slowest_s, time.monotonic() - started)
                tried += 1
                refused += outcome.word != "decoded"
                if not outcome.sane or outcome.word == Reason.DECODER_CRASH:
                    broken.append(f"{name}: {outcome.word} {outcome.detail}")
                _say(f"{name} ({len(data):,} bytes): {outcome.word}")
    told = f"{refused} refused, slowest {slowest_s:.1f} s"
    return [
        Held(
            "a decompression bomb is refused or cut",
            tried,
            tried - len(broken),
            "; ".join([told, *broken]),
        ),
        memory.worker_line("bombs: "),
    ]


def native_crashes(folder: Path, *, seed: int, clips: int = 200, crashes: int = 5) -> Held:
    """A stand-in for a decoder that crashes natively, among clips in flight: only it is lost."""
    dice = random.Random(f"{seed}-crash")
    places = set(dice.sample(range(clips), crashes))
    path = folder / "whole"
    path.write_bytes(whole_clips()["flac-16"])
    wrong: list[str] = []
    with DecodePool(timeout_s=TIMEOUT_S) as pool:
        # reading address 0 is what a broken decoder does
        jobs = [
            pool.submit(ctypes.string_at, 0)
            if number in places
            else pool.decode(path, folder / f"heard-{number}.wav", POLICY)
            for number in range(clips)
        ]
        for number, job in enumerate(jobs):
            error = job.exception()
            reason = error.rejection.reason if isinstance(error, BadRecordError) else error
            if reason != (Reason.DECODER_CRASH if number in places else None):
                wrong.append(f"clip {number}: {reason!r} (seed {seed})")
    told = f"{crashes} crashes of {clips} clips in flight"
    return Held(
        "a native crash costs its own clip alone",
        clips,
        clips - len(wrong),
        "; ".join([told, *wrong[:5]]),
    )


def print_table(table: dict[str, Counter[str]]) -> None:
    """Outcomes by container, the commonest first."""
    for name in sorted(table):
        _say(f"{name:16} {table[name].total():6,}  {_counts(table[name])}")
    everything: Counter[str] = sum(table.values(), Counter())
    _say(f"{'all':16} {everything.total():6,}  {_counts(everything)}")


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in outcomes.most_common())


def _told(clip: Clip, outcome: Outcome) -> str:
    return f"file {clip.number} ({clip.damage}): {outcome.word}: {outcome.detail}"


def _say(text: str) -> None:
    print(f"audio: {text}", flush=True)
