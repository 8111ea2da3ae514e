"""Damaged clips of every container through the real probe and decode workers, and bombs.

Every file ends as sane and whole audio or as a typed rejection; no file takes the batch along,
hangs, or makes a worker take memory in proportion to what it claims.
"""

from __future__ import annotations

import ctypes
import random
import time
from typing import TYPE_CHECKING

from earwitness.audio.pool import DecodePool
from earwitness.errors import BadRecordError
from earwitness.records import Reason
from earwitness.settings import AudioSettings, TooLong
from tests.chaos.bombs import HOURS, bombs
from tests.chaos.containers import whole_clips
from tests.chaos.memory import MemoryWatch
from tests.chaos.mutations import mutations
from tests.chaos.outcome import try_clip
from tests.chaos.report import Held

if TYPE_CHECKING:
    from pathlib import Path

FILES_PER_MINUTE = 4_000
MIN_FILES = 2_000
TIMEOUT_S = 60.0
"""How long one file may take, on a machine that is busy with more than this."""
POLICY = AudioSettings(max_duration_s=30)


def run(folder: Path, *, seed: int, minutes: float) -> list[Held]:
    """The campaign: see the module."""
    count = int(max(MIN_FILES, minutes * FILES_PER_MINUTE))
    return [
        *mutations(folder, seed=seed, count=count),
        *try_bombs(folder),
        native_crashes(folder, seed=seed),
    ]


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


def _say(text: str) -> None:
    print(f"audio: {text}", flush=True)
