"""Opening a clip: libsndfile first, PyAV (FFmpeg) for what it cannot open.

Samples come as float32 with full scale at 1.0: integers are divided by 2^(bits-1), as libsndfile
and FFmpeg both define it, so that 16-bit samples survive the way there and back exactly.
"""

from __future__ import annotations

import errno
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import soundfile

from earwitness.audio import headers
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

BLOCK_VALUES = 2**22
"""Samples times channels read at once (16 MB): most clips are one block."""

_LOSSY = ("MPEG", "VORBIS", "OPUS")
_EXACT_TOLERANCE_S = 0.01
_LOSSY_TOLERANCE_S = 0.25
"""Encoders add and announce a frame or two of padding (AAC: up to 2,112 samples and more)."""
_ABSURD_FRAMES = 2**48
"""libsndfile's way of saying that a header announces no length."""

_AV_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,loas,m4a,matroska,mov,mp3,mp4,3g2,3gp,"
    "mj2,mpc,mpc8,mpeg,mpegts,ogg,rm,tak,tta,w64,wav,webm,wv"
)
_INDEXED = {"mov", "matroska"}
"""FFmpeg containers whose announced duration is stored, not guessed from the bit rate."""


class Sound(Protocol):
    """An opened clip.

    Attributes:
        container: Name of the container, lower case.
        codec: Name of the codec, lower case.
        frames: Length the header announces; None where it announces none that can be trusted.
        tolerance_s: By how much decoding may fall short of it.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    frames: int | None
    tolerance_s: float

    def blocks(self) -> Iterator[Samples]:
        """The samples in order, each block of shape (frames, channels).

        Raises:
            BadRecordError: The decoder failed on the way (`truncated`, `decode_failed`).
        """
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


@contextmanager
def opened(path: Path) -> Iterator[Sound]:
    """Open a clip, whatever it is called.

    Args:
        path: The clip on local disk.

    Yields:
        The opened clip.

    Raises:
        BadRecordError: `not_audio`, or `decode_failed` for audio too damaged to be opened.
        FileNotFoundError: There is no such file.
    """
    sound = _open_soundfile(path) or _open_av(path)
    if sound is None:
        raise _unreadable(path)
    try:
        yield sound
    finally:
        sound.close()


def _unreadable(path: Path) -> BadRecordError:
    with path.open("rb") as file:
        head = file.read(4096)
    kind = headers.audio_kind(head)
    if kind:
        detail = f"starts like {kind}, but no decoder can open it"
        return BadRecordError(Rejection(Stage.VALIDATE, Reason.DECODE_FAILED, detail))
    detail = f"the clip is not audio but {headers.looks_like(head)}"
    return BadRecordError(Rejection(Stage.VALIDATE, Reason.NOT_AUDIO, detail))


def _broken(*, started: bool) -> BadRecordError:
    if started:
        reason, detail = Reason.TRUNCATED, "the clip stops being readable before its end"
    else:
        reason, detail = Reason.DECODE_FAILED, "no sample of the clip can be decoded"
    return BadRecordError(Rejection(Stage.DECODE, reason, detail))


def _open_soundfile(path: Path) -> Sound | None:
    try:
        file = soundfile.SoundFile(str(path))
    except soundfile.LibsndfileError:
        return None
    if file.frames >= _ABSURD_FRAMES:
        # a FLAC written to a pipe; libsndfile fails at its end, FFmpeg reads it
        file.close()
        return None
    return _SoundFile(path, file)


class _SoundFile:
    """A clip that libsndfile reads."""

    def __init__(self, path: Path, file: Any) -> None:
        self._file = file
        self.container = str(file.format).lower()
        self.codec = str(file.subtype).lower()
        self.sample_rate_hz = int(file.samplerate)
        self.channels = int(file.channels)
        lossy = str(file.subtype).startswith(_LOSSY)
        self.tolerance_s = _LOSSY_TOLERANCE_S if lossy else _EXACT_TOLERANCE_S
        known = file.frames >= 0
        if self.container == "mp3":
            known = known and headers.mp3_announces_length(path)
        self.frames = int(file.frames) if known else None

    def blocks(self) -> Iterator[Samples]:
        size = BLOCK_VALUES // self.channels
        while True:
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                # libsndfile gives up a whole block for an error anywhere in it
                raise _broken(started=True) from None
            if not len(block):
                return
            yield cast("Samples", block)

    def close(self) -> None:
        self._file.close()


class _ClipFile(io.FileIO):
    """A file for FFmpeg, which seeks wherever a damaged header sends it.

    It is told so as its own callbacks tell it, by a negative number; an exception from here would
    be raised to our caller instead, as if the disk were at fault.
    """

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return -errno.EINVAL
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -errno.EINVAL


def _open_av(path: Path) -> Sound | None:
    import av

    file = _ClipFile(path)
    try:
        # from an open file, and only these formats: a playlist must not make FFmpeg open the
        # addresses it names
        container = av.open(
            file, metadata_errors="replace", options={"format_whitelist": _AV_FORMATS}
        )
    except (av.FFmpegError, ValueError):
        file.close()
        return None
    if not container.streams.audio:
        container.close()
        file.close()
        return None
    if container.streams.audio[0].codec_context is None:
        container.close()
        file.close()
        detail = "the clip is in a codec that no decoder here knows"
        raise BadRecordError(Rejection(Stage.VALIDATE, Reason.UNSUPPORTED_AUDIO, detail))
    return _AvSound(file, container)


class _AvSound:
    """A clip that FFmpeg reads; of a video, its first audio stream."""

    tolerance_s = _LOSSY_TOLERANCE_S

    def __init__(self, file: Any, container: Any) -> None:
        self._file = file
        self._container = container
        self._stream = container.streams.audio[0]
        name = str(container.format.name).partition(",")[0]
        self.container = {"mov": "mp4"}.get(name, name)
        self.codec = str(self._stream.codec_context.name)
        self.sample_rate_hz = int(self._stream.rate or 0)
        self.channels = int(self._stream.channels or 0)
        self.frames = self._announced(name)

    def _announced(self, name: str) -> int | None:
        if name not in _INDEXED or not self.sample_rate_hz:
            return None
        stream = self._stream
        seconds = 0.0
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif self._container.duration:
            seconds = self._container.duration / 1_000_000
        return round(seconds * self.sample_rate_hz) or None

    def blocks(self) -> Iterator[Samples]:
        import av

        given = 0
        try:
            for frame in self._container.decode(self._stream):
                block = _frame_samples(frame)
                if frame.sample_rate != self.sample_rate_hz or block.shape[1] != self.channels:
                    detail = "the clip changes its sample rate or channels on the way"
                    raise BadRecordError(Rejection(Stage.DECODE, Reason.DECODE_FAILED, detail))
                if self.frames is not None:
                    # what comes after the announced end is the encoder's padding
                    block = block[: self.frames - given]
                given += len(block)
                yield block
        except (av.FFmpegError, ValueError):
            raise _broken(started=given > 0) from None

    def close(self) -> None:
        self._container.close()
        self._file.close()


def _frame_samples(frame: Any) -> Samples:
    """A decoded frame as float32 of shape (frames, channels)."""
    values: NDArray[Any] = frame.to_ndarray()
    channels = frame.layout.nb_channels
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind == "i":
        scale = float(2 ** (8 * values.dtype.itemsize - 1))
        return (values / scale).astype(np.float32)
    return values.astype(np.float32)
