"""What can be known of a clip from its header, before any decoding."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earwitness.audio import ends
from earwitness.audio.blocks import TOLERANCE_S
from earwitness.audio.sound import opened
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from earwitness.audio.sound import Sound

MAX_CHANNELS = 8
MIN_RATE_HZ = 4_000
MAX_RATE_HZ = 384_000

_WIDTHS = {
    "pcm_s8": 1,
    "pcm_u8": 1,
    "ulaw": 1,
    "alaw": 1,
    "pcm_16": 2,
    "pcm_24": 3,
    "pcm_32": 4,
    "float": 4,
    "double": 8,
}
"""Bytes of a sample, by codec."""
_UNOPENED = {Reason.DECODE_FAILED, Reason.NOT_AUDIO, Reason.UNSUPPORTED_AUDIO}
"""What a decoder may say of a file whose end is missing."""
_DECODER_FAILURES = (ArithmeticError, LookupError, RuntimeError, ValueError)
"""What the decoders' bindings raise on damaged data besides their own errors."""


@dataclass(frozen=True, slots=True)
class ProbedClip:
    """A clip's header.

    Attributes:
        container: Lower-case name: `wav`, `flac`, `ogg`, `mp3`, `mp4`, ….
        codec: Lower-case name: `pcm_16`, `vorbis`, `aac`, ….
        sample_rate_hz: As stored.
        channels: As stored.
        duration_s: As announced; None where only decoding can tell.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    duration_s: float | None


def probe(path: Path) -> ProbedClip:
    """Look at a clip's header and length, without decoding it.

    Args:
        path: The clip on local disk.

    Returns:
        What the header says.

    Raises:
        BadRecordError: At `validate`: `not_audio`, `truncated`, `unsupported_audio`, or
            `decode_failed` for a header too damaged to read.
    """
    with open_clip(path) as sound:
        frames = sound.frames
        return ProbedClip(
            container=sound.container,
            codec=sound.codec,
            sample_rate_hz=sound.sample_rate_hz,
            channels=sound.channels,
            duration_s=None if frames is None else round(frames / sound.sample_rate_hz, 6),
        )


@contextmanager
def open_clip(
    path: Path, stage: Stage = Stage.VALIDATE, *, probed: bool = False
) -> Iterator[Sound]:
    """Open a clip whose file is whole and whose rate and channels are supported.

    Args:
        path: The clip on local disk.
        stage: Where a decoder that fails inside the block is reported.
        probed: These very bytes were found to be whole before.

    Yields:
        The opened clip.

    Raises:
        BadRecordError: `not_audio`, `truncated`, `unsupported_audio`, `decode_failed`.
    """
    missing = 0 if probed else ends.missing_bytes(path)
    try:
        with opened(path) as sound:
            _check_shape(sound)
            if missing and not _little(missing, sound):
                raise _truncated(missing)
            yield sound
    except BadRecordError as error:
        if missing and error.rejection.reason in _UNOPENED:
            raise _truncated(missing) from error
        raise
    except MemoryError:
        detail = "decoding the clip needs more memory than is allowed for one clip"
        raise _rejected(Reason.DECODE_FAILED, detail, stage) from None
    except _DECODER_FAILURES as error:
        detail = f"the decoder failed on this clip ({type(error).__name__})"
        raise _rejected(Reason.DECODE_FAILED, detail, stage) from error


def _little(missing: int, sound: Sound) -> bool:
    """Whether what is missing lasts no longer than may be missing.

    That is known of uncompressed samples alone. Behind an incomplete frame or page there may have
    been many more.
    """
    width = _WIDTHS.get(sound.codec)
    if width is None:
        return False
    return missing <= TOLERANCE_S * sound.sample_rate_hz * sound.channels * width


def _truncated(missing: int) -> BadRecordError:
    detail = f"the clip is cut off: {missing:,} bytes that its header announces are missing"
    return _rejected(Reason.TRUNCATED, detail)


def _check_shape(sound: Sound) -> None:
    if not 1 <= sound.channels <= MAX_CHANNELS:
        raise _rejected(
            Reason.UNSUPPORTED_AUDIO,
            f"the clip has {sound.channels} channels, and only 1 to {MAX_CHANNELS} are supported",
        )
    if not MIN_RATE_HZ <= sound.sample_rate_hz <= MAX_RATE_HZ:
        raise _rejected(
            Reason.UNSUPPORTED_AUDIO,
            f"the clip's sample rate is {sound.sample_rate_hz} Hz, "
            f"and only {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are supported",
        )


def _rejected(reason: Reason, detail: str, stage: Stage = Stage.VALIDATE) -> BadRecordError:
    return BadRecordError(Rejection(stage, reason, detail))
