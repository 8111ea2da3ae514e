"""Draws short sounds of which everything is known: the demo model's whole world.

A clip is 16 kHz mono 16-bit audio with one kind of sound in it and the facts that questions are
asked about. All ranges leave gaps between classes (no pitch lies between "low" and "medium"), so
that every answer can be checked by ear. The same generator state gives the same clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

RATE_HZ = 16_000
KINDS = ("silence", "beeps", "tone", "rising", "falling", "noise", "clicks")
KIND_SHARES = (0.04, 0.52, 0.11, 0.08, 0.08, 0.09, 0.08)
PITCHES = ("low", "medium", "high")
PITCH_RANGES_HZ = {"low": (180, 380), "medium": (650, 1000), "high": (1700, 3400)}
MOST_BEEPS = 5

_PEAKS = {"loud": (0.3, 0.8), "quiet": (0.02, 0.06)}
_NOISE_RMS = {"loud": (0.09, 0.22), "quiet": (0.006, 0.02)}
_CLICK_PEAKS = {"loud": (0.5, 0.95), "quiet": (0.03, 0.08)}
_BEEP_S = {"short": (0.06, 0.16), "long": (0.3, 0.45)}
_FULL_SCALE = 32768


@dataclass(frozen=True)
class Clip:
    """A sound and what is true of it.

    Attributes:
        samples: 16 kHz mono, -1 to 1, already rounded to 16 bits.
        kind: One of `KINDS`.
        loudness: "loud" or "quiet"; None for silence.
        level: Peak (of noise: RMS) before anything was added.
        pitch: "low", "medium" or "high"; None where a sound has no one pitch.
        pitch_hz: The pitch itself, 0 where there is none.
        length: "short" or "long" beeps; None for other kinds.
        beeps: First and last sample of each beep.
    """

    samples: NDArray[np.float32]
    kind: str
    loudness: str | None = None
    level: float = 0.0
    pitch: str | None = None
    pitch_hz: float = 0.0
    length: str | None = None
    beeps: tuple[tuple[int, int], ...] = ()

    @property
    def duration_s(self) -> float:
        """How long it lasts."""
        return len(self.samples) / RATE_HZ


def draw_clip(
    rng: Generator, *, kind: str | None = None, beeps: int | None = None, long_clip: bool = False
) -> Clip:
    """Draw a clip.

    Args:
        rng: Where chance comes from.
        kind: Its kind. Default: drawn by `KIND_SHARES`.
        beeps: How many beeps. Default: drawn.
        long_clip: Between 10 and 30 s instead of a few seconds at most.

    Returns:
        The clip.
    """
    kind = kind or ("beeps" if beeps else str(rng.choice(KINDS, p=KIND_SHARES)))
    loudness = str(rng.choice(("loud", "quiet")))
    longest_s = rng.uniform(10, 30) if long_clip else 0.0
    lead, tail = _margins(rng, longest_s)
    if kind == "silence":
        return _finish(rng, np.zeros(round(max(rng.uniform(0.5, 3), longest_s) * RATE_HZ)), (0, 0))
    if kind == "beeps":
        return _draw_beeps(rng, beeps or int(rng.integers(1, MOST_BEEPS + 1)), loudness, longest_s)
    if kind == "noise":
        level = _between(rng, _NOISE_RMS[loudness])
        sound = level * rng.standard_normal(_sound_samples(rng, longest_s))
    elif kind == "clicks":
        level = _between(rng, _CLICK_PEAKS[loudness])
        sound = level * _clicks(rng, longest_s)
    else:
        level = _between(rng, _PEAKS[loudness])
        return _draw_tone(rng, kind, loudness, level, (longest_s, lead, tail))
    return _finish(rng, sound, (lead, tail), kind=kind, loudness=loudness, level=level)


def roughen(rng: Generator, clip: NDArray[np.float32]) -> NDArray[np.float32]:
    """Do to samples what lossy and telephone codecs do: the model must hear through it.

    Args:
        rng: Where chance comes from.
        clip: 16 kHz mono samples.

    Returns:
        As many samples, band-limited, with weak parts of the spectrum gone and the rest a little
        off.
    """
    size, hop = 1024, 512
    window = np.sqrt(np.hanning(size + 1)[:-1])
    padded = np.pad(clip.astype(np.float64), (size, size + (-len(clip)) % hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop] * window
    spectrum = np.fft.rfft(frames, axis=1)
    # half of all cuts are a telephone's
    cut_hz = 3_700 if rng.random() < 0.5 else rng.uniform(3_600, 8_000)
    spectrum[:, round(cut_hz / RATE_HZ * size) :] = 0
    if rng.random() < 0.7:
        size_of = np.abs(spectrum)
        floor = size_of.max(axis=1, keepdims=True) * 10 ** (-rng.uniform(30, 75) / 20)
        spectrum[size_of < floor] = 0
        spectrum *= 1 + rng.uniform(0, 0.1) * rng.standard_normal(spectrum.shape)
    pieces = np.fft.irfft(spectrum, size, axis=1) * window
    result = np.zeros(len(padded))
    for number, piece in enumerate(pieces):
        result[number * hop : number * hop + size] += piece
    return _to_16_bits(result[size : size + len(clip)])


def _between(rng: Generator, limits: Sequence[float]) -> float:
    """Even on a logarithmic scale, as ears go."""
    return float(np.exp(rng.uniform(np.log(limits[0]), np.log(limits[1]))))


def _margins(rng: Generator, longest_s: float) -> tuple[int, int]:
    """Samples of quiet before and after the sound."""
    most_s = max(0.5, longest_s / 4)
    return round(rng.uniform(0, most_s) * RATE_HZ), round(rng.uniform(0, most_s) * RATE_HZ)


def _sound_samples(rng: Generator, longest_s: float) -> int:
    return round(max(rng.uniform(0.8, 2.5), longest_s / 2) * RATE_HZ)


def _draw_beeps(rng: Generator, count: int, loudness: str, longest_s: float) -> Clip:
    length = str(rng.choice(tuple(_BEEP_S)))
    pitch = str(rng.choice(PITCHES))
    pitch_hz = _between(rng, PITCH_RANGES_HZ[pitch])
    level = _between(rng, _PEAKS[loudness])
    beep_s = rng.uniform(*_BEEP_S[length])
    gap_s = rng.uniform(0.08, 0.35) if not longest_s else rng.uniform(0.2, longest_s / 14)
    timbre = _timbre(rng)
    lead, tail = _margins(rng, longest_s)
    pieces = []
    places = []
    position = lead
    for number in range(count):
        if number:
            gap = round(max(0.08, gap_s * rng.uniform(0.7, 1.4)) * RATE_HZ)
            pieces.append(np.zeros(gap))
            position += gap
        samples = round(beep_s * rng.uniform(0.95, 1.05) * RATE_HZ)
        pieces.append(level * _tone(rng, np.full(samples, pitch_hz), timbre))
        places.append((position, position + samples))
        position += samples
    return _finish(
        rng,
        np.concatenate(pieces),
        (lead, max(tail, round(longest_s * RATE_HZ) - position)),
        kind="beeps",
        loudness=loudness,
        level=level,
        pitch=pitch,
        pitch_hz=pitch_hz,
        length=length,
        beeps=tuple(places),
    )


def _draw_tone(
    rng: Generator, kind: str, loudness: str, level: float, room: tuple[float, int, int]
) -> Clip:
    longest_s, lead, tail = room
    samples = _sound_samples(rng, longest_s)
    pitch, pitch_hz = None, 0.0
    if kind == "tone":
        pitch = str(rng.choice(PITCHES))
        pitch_hz = _between(rng, PITCH_RANGES_HZ[pitch])
        course = np.full(samples, pitch_hz)
    else:
        low_hz = _between(rng, (180, 900))
        high_hz = min(3_400.0, low_hz * rng.uniform(2.5, 8))
        ends = (low_hz, high_hz) if kind == "rising" else (high_hz, low_hz)
        course = np.linspace(*ends, samples) if rng.random() < 0.5 else np.geomspace(*ends, samples)
    sound = level * _tone(rng, course, _timbre(rng))
    return _finish(
        rng,
        sound,
        (lead, tail),
        kind=kind,
        loudness=loudness,
        level=level,
        pitch=pitch,
        pitch_hz=pitch_hz,
    )


def _timbre(rng: Generator) -> tuple[float, float]:
    """How loud the second and third harmonic are; most tones are pure."""
    if rng.random() < 0.65:
        return 0.0, 0.0
    return rng.uniform(0, 0.3), rng.uniform(0, 0.2)


def _tone(
    rng: Generator, course_hz: NDArray[np.float64], timbre: tuple[float, float]
) -> NDArray[np.float64]:
    """A tone that follows a course of pitches, with soft ends and a peak of 1."""
    phase = 2 * np.pi * np.cumsum(course_hz) / RATE_HZ + rng.uniform(0, 2 * np.pi)
    wave = np.sin(phase) + timbre[0] * np.sin(2 * phase) + timbre[1] * np.sin(3 * phase)
    steps = np.arange(len(wave))
    fade = np.minimum(1.0, np.minimum(steps, steps[::-1]) / (rng.uniform(0.004, 0.015) * RATE_HZ))
    faded: NDArray[np.float64] = wave * fade / np.max(np.abs(wave))
    return faded


def _clicks(rng: Generator, longest_s: float) -> NDArray[np.float64]:
    """Some bursts of a few milliseconds, with a peak of 1."""
    gap = round((rng.uniform(0.07, 0.25) if not longest_s else longest_s / 22) * RATE_HZ)
    count = int(rng.integers(4, 11))
    sound = np.zeros(gap * count)
    for number in range(count):
        samples = round(rng.uniform(0.001, 0.004) * RATE_HZ)
        burst = rng.standard_normal(samples) * np.exp(-3 * np.arange(samples) / samples)
        place = number * gap + round(rng.uniform(0, 0.4) * gap)
        sound[place : place + samples] = burst / np.max(np.abs(burst))
    return sound


def _finish(
    rng: Generator,
    sound: NDArray[np.float64],
    margins: tuple[int, int],
    *,
    kind: str = "silence",
    **facts: object,
) -> Clip:
    """Add quiet around a sound and a floor of noise under it, and round to 16 bits."""
    samples = np.pad(sound, margins)
    # some clips come from a studio: no noise at all
    if rng.random() > 0.2:
        limits = (3e-4, 1.3e-3) if kind == "silence" else (5e-5, 6e-4)
        samples = samples + _between(rng, limits) * rng.standard_normal(len(samples))
    return Clip(samples=_to_16_bits(samples), kind=kind, **facts)  # type: ignore[arg-type]  # each is a field's own


def _to_16_bits(samples: NDArray[np.float64]) -> NDArray[np.float32]:
    rounded = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    return (rounded / _FULL_SCALE).astype(np.float32)
