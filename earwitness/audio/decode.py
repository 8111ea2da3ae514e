"""From a clip to what the model hears: mono, the model's rate, 16-bit PCM WAV.

Numeric rules, each with where it comes from:

- Channels are averaged with equal weight, in float64 (`librosa.to_mono`'s rule). Where they cancel
  each other (the average's peak is 40 dB or more below a channel's own), the loudest channel is
  heard instead: docs/decisions/0024.
- Resampling is `librosa.resample(res_type="soxr_hq")`: SoX's high-quality band-limited resampler,
  librosa's own default; the result has `ceil(n · target / source)` samples.
- float → 16 bit is `rint(x · 32768)` clipped to [-32768, 32767], the inverse of libsndfile's
  int → float rule: 16-bit mono audio at the model's rate passes through sample for sample.
- No dither and no change of level: the same bytes in give the same bytes out.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from earwitness.audio.blocks import TOLERANCE_S
from earwitness.audio.facts import facts_version, max_duration_s
from earwitness.audio.probe import open_clip
from earwitness.audio.wav import hand_on, pcm_digest, ready_samples, write_wav
from earwitness.errors import BadRecordError
from earwitness.records import ClipFacts, HeardSound, Reason, Rejection, Stage
from earwitness.settings import TooLong

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from earwitness.audio.blocks import Samples
    from earwitness.audio.sound import Sound
    from earwitness.settings import AudioSettings

    Mono = Callable[[Samples], Samples]

_STEREO = 2
_CANCELLED = 0.01
"""A mix whose peak is below this share of its loudest channel's (40 dB) is what is left of it."""
_OTHERWISE = {Reason.TRUNCATED, Reason.DECODE_FAILED}
"""How a decoder fails where another may not."""
_ABSURD_S = 24 * 3600.0
"""Nobody cuts the first half minute out of a day: such a stream is refused, not counted through."""


class _Heard(NamedTuple):
    """The part of a clip that the model hears, before it is resampled.

    Attributes:
        samples: Mono, full scale at 1.0.
        rate_hz: Their rate.
        duration_s: Of the whole clip; None: it was not decoded to its end.
        container: As the decoder calls it.
    """

    samples: Samples
    rate_hz: int
    duration_s: float | None
    container: str


def decode(path: Path, destination: Path, policy: AudioSettings) -> ClipFacts:
    """Decode a clip to mono 16-bit WAV at the model's rate.

    Never holds more than the part the model hears in memory, whatever the clip's length.

    Args:
        path: The clip on local disk, already probed.
        destination: The WAV file to write, whole or not at all. None is written of a clip without
            a sample, nor of one that is too long where policy rejects such clips.
        policy: Rate, limit, and whether a longer clip is cut. Nothing is rejected for them here:
            see `facts.judge`.

    Returns:
        The clip's facts with the sound that was written.

    Raises:
        BadRecordError: At `decode`: `truncated`, `not_finite`, `decode_failed`, or `clip_too_long`
            for a stream of more than a day.
        DiskError: The scratch folder's disk is full.
    """
    limit_s, rate_hz = max_duration_s(policy), policy.sample_rate_hz
    ready = ready_samples(path, rate_hz)
    if ready is not None and len(ready) <= limit_s * rate_hz:
        # it is, byte for byte, what decoding it would write
        hand_on(path, destination)
        lasts_s = round(len(ready) / rate_hz, 6)
        sound = HeardSound(rate_hz, None, lasts_s, _peak(ready) / 32768, pcm_digest(ready, rate_hz))
        return ClipFacts("wav", facts_version("wav"), lasts_s, sounds=(sound,))
    mixer = _Mixer()
    heard = _heard_of(path, policy, mixer.mixed)
    if _peak(heard.samples) < mixer.peak * _CANCELLED:
        _heard_of(path, policy, mixer.compared)
        heard = _heard_of(path, policy, mixer.loudest)
    version = facts_version(heard.container)
    if heard.duration_s is None:
        return ClipFacts(heard.container, version, longer_than_s=limit_s)
    if heard.duration_s == 0:
        return ClipFacts(heard.container, version, heard.duration_s)
    cut_s = limit_s if heard.duration_s > limit_s else None
    if cut_s is not None and policy.too_long is TooLong.REJECT:
        return ClipFacts(heard.container, version, heard.duration_s)
    heard_s = heard.duration_s if cut_s is None else len(heard.samples) / heard.rate_hz
    pcm = to_pcm16(resample(heard.samples, heard.rate_hz, rate_hz))
    write_wav(destination, pcm, rate_hz)
    sound = HeardSound(
        rate_hz, cut_s, round(heard_s, 6), _peak(heard.samples), pcm_digest(pcm, rate_hz)
    )
    return ClipFacts(heard.container, version, heard.duration_s, sounds=(sound,))


def warm_up() -> None:
    """Import and run the resampler once, so that a process forked from here has it ready."""
    resample(np.zeros(441, dtype=np.float32), 44_100, 16_000)


def resample(samples: Samples, source_hz: int, target_hz: int) -> Samples:
    """Mono samples at another rate (`soxr_hq`); at the same rate, the very same samples."""
    if source_hz == target_hz:
        return samples
    import librosa

    return cast(
        "Samples",
        librosa.resample(samples, orig_sr=source_hz, target_sr=target_hz, res_type="soxr_hq"),
    )


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Float samples as 16-bit integers; beyond full scale they clip."""
    scaled: Samples = samples * np.float32(32768)
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -32768, 32767, out=scaled).astype(np.int16)


def _heard_of(path: Path, policy: AudioSettings, mono: Mono) -> _Heard:
    """The part the model hears.

    Where one decoder fails another is asked, held to the same length.
    """
    with open_clip(path, Stage.DECODE, probed=True) as sound:
        try:
            return _heard(sound, policy, mono)
        except BadRecordError as error:
            second = sound.otherwise() if error.rejection.reason in _OTHERWISE else None
            if second is None:
                raise
            with closing(second):
                return _heard(second, policy, mono)


def _heard(sound: Sound, policy: AudioSettings, mono: Mono) -> _Heard:
    wanted = math.floor(max_duration_s(policy) * sound.sample_rate_hz)
    kept: list[Samples] = []
    frames: int | None = 0
    read = 0
    for block in sound.blocks():
        if read < wanted:
            kept.append(mono(block[: wanted - read]))
        read += len(block)
        if read <= wanted:
            continue
        if sound.frames is not None and sound.frames > wanted:
            # the header tells the rest: no need to decode what nobody hears
            frames = sound.frames
            break
        if policy.too_long is TooLong.REJECT:
            frames = None
            break
        if read > _ABSURD_S * sound.sample_rate_hz:
            detail = f"the clip lasts longer than {_ABSURD_S:g} s"
            raise _rejected(Reason.CLIP_TOO_LONG, detail)
    else:
        frames = read
        _check_whole(sound, read)
    samples = np.concatenate(kept) if kept else np.zeros(0, dtype=np.float32)
    lasts_s = None if frames is None else round(frames / sound.sample_rate_hz, 6)
    return _Heard(samples, sound.sample_rate_hz, lasts_s, sound.container)


class _Mixer:
    """Makes one channel of several.

    Attributes:
        peak: The largest absolute value in any channel that was mixed.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._peaks = np.zeros(1, np.float32)

    def mixed(self, block: Samples) -> Samples:
        """The channels' average."""
        if not np.isfinite(block).all():
            detail = "the clip holds samples that are not numbers (NaN, Inf)"
            raise _rejected(Reason.NOT_FINITE, detail)
        if block.shape[1] == 1:
            return block[:, 0]
        self.peak = max(self.peak, _peak(block))
        if block.shape[1] == _STEREO:
            # the same sum, two channels at a time instead of two samples: seven times as fast
            mean: NDArray[np.float64] = np.add(block[:, 0], block[:, 1], dtype=np.float64)
            mean *= 0.5
        else:
            mean = block.mean(axis=1, dtype=np.float64)
        return mean.astype(np.float32)

    def compared(self, block: Samples) -> Samples:
        """Nothing; notes each channel's peak. Too slow for clips whose channels do not cancel."""
        peaks = np.zeros(max(len(self._peaks), block.shape[1]), np.float32)
        peaks[: len(self._peaks)] = self._peaks
        here = np.abs(block).max(axis=0, initial=0)
        peaks[: len(here)] = np.maximum(peaks[: len(here)], here)
        self._peaks = peaks
        return block[:0, 0]

    def loudest(self, block: Samples) -> Samples:
        """The channel with the largest peak; the last one where there are fewer on the way."""
        return block[:, min(int(self._peaks.argmax()), block.shape[1] - 1)]


def _check_whole(sound: Sound, frames: int) -> None:
    """Hold what was decoded against what the header promised."""
    if sound.frames is None:
        return
    missing_s = (sound.frames - frames) / sound.sample_rate_hz
    if missing_s > TOLERANCE_S:
        detail = (
            f"the clip is cut off: its header announces "
            f"{sound.frames / sound.sample_rate_hz:.2f} s, and it has only "
            f"{frames / sound.sample_rate_hz:.2f} s"
        )
        raise _rejected(Reason.TRUNCATED, detail)


def _peak(samples: Samples | NDArray[np.int16]) -> float:
    """The largest absolute value; without an array of absolute values, which int16 has not all."""
    return max(float(samples.max(initial=0)), -float(samples.min(initial=0)))


def _rejected(reason: Reason, detail: str) -> BadRecordError:
    return BadRecordError(Rejection(Stage.DECODE, reason, detail))
