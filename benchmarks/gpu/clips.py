"""Clips of 2 to 30 seconds by the thousand, made in seconds: stretches of one long noise."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from tests.integration.workbench import LONG_AGO_S

if TYPE_CHECKING:
    from pathlib import Path

SHORTEST_S, LONGEST_S = 2.0, 30.0
MODEL_RATE_HZ = 16_000
SOURCE_RATE_HZ = 22_050
"""Sources are not at the model's rate: the build has to resample them."""


@dataclass(frozen=True, slots=True)
class Clips:
    """The same sounds twice.

    Attributes:
        sources: As somebody has them; the build's input.
        ready: As the engine wants them; the bare client's input.
        audio_s: How long they are together.
    """

    sources: list[Path]
    ready: list[Path]
    audio_s: float


def write_clips(sources: Path, ready: Path, count: int, seed: int = 1) -> Clips:
    """Write clips, no two alike.

    Args:
        sources: Folder of those at 22,050 Hz.
        ready: Folder of those at 16 kHz.
        count: How many.
        seed: Of lengths and noise.
    """
    draw = np.random.default_rng(seed)
    noise = (3000 * draw.standard_normal(round(2 * LONGEST_S * SOURCE_RATE_HZ))).astype(np.int16)
    durations_s = draw.uniform(SHORTEST_S, LONGEST_S, count)
    starts = draw.integers(0, round(LONGEST_S * MODEL_RATE_HZ) - 1, count)
    found: dict[Path, list[Path]] = {sources: [], ready: []}
    for folder, rate_hz in ((sources, SOURCE_RATE_HZ), (ready, MODEL_RATE_HZ)):
        folder.mkdir(parents=True, exist_ok=True)
        for number, (start, duration_s) in enumerate(zip(starts, durations_s, strict=True)):
            path = folder / f"{number:06d}.wav"
            soundfile.write(path, noise[start : start + round(duration_s * rate_hz)], rate_hz)
            os.utime(path, (LONG_AGO_S, LONG_AGO_S))
            found[folder].append(path)
    return Clips(found[sources], found[ready], float(durations_s.sum()))
