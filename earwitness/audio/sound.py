"""Opening a clip with a decoder that reads all of its sound.

What a clip holds is decided by its bytes, not by what a header or a decoder guesses of them: MP3
and AMR by their frames, Ogg by its links, FLAC by its last frame. libsndfile reads where it knows
the length for certain, PyAV (FFmpeg) the rest, and what libsndfile opens but cannot read.

Samples come as float32 with full scale at 1.0: integers are divided by 2^(bits-1), as libsndfile
and FFmpeg both define it, so that 16-bit samples survive the way there and back exactly.
"""

from __future__ import annotations

import mmap
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import soundfile

from earwitness.audio import amr, ends, flac, headers, mpeg, ogg, tags
from earwitness.audio.av_sound import ClipFile, open_av, packets_s
from earwitness.audio.blocks import (
    TOLERANCE_S,
    at_one_rate,
    broken,
    check_lost,
)
from earwitness.audio.packets import AmrSound, MpegSound
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from earwitness.audio.blocks import Samples

BLOCK_VALUES = 2**22
"""Samples times channels read at once (16 MB): most clips are one block."""

_HEAD_BYTES = 4096
_OPUS_RATE_HZ = 48_000
_ABSURD_FRAMES = 2**48
"""libsndfile's way of saying that a header announces no length."""
_SIZED = frozenset({"wav", "wavex", "aiff", "au", "rf64", "w64", "caf", "svx", "voc"})
"""Containers whose writers leave 0 where they do not know the length."""


class Sound(Protocol):
    """An opened clip.

    Attributes:
        container: Name of the container, lower case.
        codec: Name of the codec, lower case.
        sample_rate_hz: The rate that `blocks` come at: the highest, where it changes on the way.
        channels: The most that a block may have.
        frames: The clip's length; None where only decoding can tell.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    frames: int | None

    def blocks(self) -> Iterator[Samples]:
        """The samples in order, each block of shape (frames, channels).

        Raises:
            BadRecordError: The decoder failed on the way (`truncated`, `decode_failed`).
        """
        ...

    def otherwise(self) -> Sound | None:
        """The same clip by another decoder, for when this one fails; None: there is none."""
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
        BadRecordError: `not_audio` (also for a video without an audio track), `unsupported_audio`,
            `truncated`, or `decode_failed` for audio too damaged to be opened.
        FileNotFoundError: There is no such file.
    """
    sound = _open(path)
    if sound is None:
        raise _unreadable(path)
    try:
        yield sound
    finally:
        sound.close()


def _open(path: Path) -> Sound | None:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            start = tags.container_start(data)
            sound = _open_by_bytes(path, data, start)
            return sound or _open_by_decoder(path, data, start)


def _open_by_bytes(path: Path, data: mmap.mmap, start: int) -> Sound | None:
    """Open what we find the pieces of ourselves."""
    head = data[start : start + _HEAD_BYTES]
    kind = amr.kind_of(head)
    if kind is not None:
        count = sum(1 for _ in amr.frames(data, kind, start))
        return AmrSound(path, kind, count, start)
    if head.startswith(b"OggS"):
        return _open_chain([partial(_open_link, path, one) for one in ogg.links(data)])
    if head.startswith(b"fLaC") and not flac.announces_all(data, start):
        return _open_chain(
            [
                partial(open_av, path, link=ogg.Link(begin, end), frames=samples)
                for begin, end, samples in flac.streams(data, start)
            ]
        )
    if not start and mpeg.begins(data):
        return _open_mpeg(path, data)
    return None


def _open_by_decoder(path: Path, data: mmap.mmap, start: int) -> Sound | None:
    contradiction = ends.contradiction(ends.seen(data, start))
    if contradiction:
        detail = f"the clip's header contradicts itself: {contradiction}"
        raise BadRecordError(Rejection(Stage.VALIDATE, Reason.DECODE_FAILED, detail))
    sound = _open_soundfile(path, part=(start, len(data)))
    if sound is not None and sound.container == "mp3":
        # it knows MP3 with junk before it, but guesses the length
        sound.close()
        return _open_mpeg(path, data) or open_av(path)
    if sound is None:
        return open_av(path, start=start)
    if not sound.frames and sound.container in _SIZED:
        # a length of 0 in the header: written to a pipe, unless nothing was
        size = ends.size_instead_of_none(ends.seen(data, start))
        if size is not None:
            sound.close()
            return _open_soundfile(path, part=(start, len(data)), instead=size)
        other = open_av(path, start=start)
        if other is not None and other.holds_packets():
            return other
    if sound.container == "wav" and ends.ends_in_a_block(ends.seen(data, start)):
        # libsndfile drops what FFmpeg reads
        sound.close()
        return open_av(path, start=start)
    return sound


def _open_mpeg(path: Path, data: mmap.mmap) -> Sound | None:
    segments = mpeg.scan(data)
    if not segments:
        return None
    _check_whole_mpeg(segments)
    _check_all_mpeg(data, segments)
    sound = MpegSound(path, segments)
    if len(segments) > 1 or segments[0].lost:
        return sound
    faster = _open_soundfile(path, otherwise=lambda: MpegSound(path, segments))
    if faster is None:
        return sound
    # twice as fast as frame by frame; its length is a guess, but at most too large this time
    guessed = faster.frames or 0
    right = guessed == sound.frames or (segments[0].untagged and guessed > (sound.frames or 0))
    if right and faster.sample_rate_hz == sound.sample_rate_hz:
        faster.frames = sound.frames
        return faster
    faster.close()
    return sound


def _check_whole_mpeg(segments: list[mpeg.Segment]) -> None:
    check_lost(sum(one.lost / one.form.rate_hz for one in segments))
    for one in segments:
        there_s, missing_s = one.samples / one.form.rate_hz, one.missing / one.form.rate_hz
        if missing_s > TOLERANCE_S:
            detail = f"the clip is cut off: its header announces {there_s + missing_s:.2f} s, "
            detail += f"and it has only {there_s:.2f} s"
            raise BadRecordError(Rejection(Stage.VALIDATE, Reason.TRUNCATED, detail))


def _check_all_mpeg(data: mmap.mmap, segments: list[mpeg.Segment]) -> None:
    """Refuse what only begins like an MP3: most of its bytes are something else."""
    frames = sum(one.size for one in segments)
    others = tags.foreign_bytes(data, segments[-1].end)
    if others > frames:
        detail = f"{frames:,} bytes of MPEG audio are followed by {others:,} bytes that are none"
        raise BadRecordError(Rejection(Stage.VALIDATE, Reason.DECODE_FAILED, detail))


def _unreadable(path: Path) -> BadRecordError:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    kind = headers.audio_kind(head)
    if kind:
        detail = f"the clip starts like {kind}, but no decoder can open it"
        return BadRecordError(Rejection(Stage.VALIDATE, Reason.DECODE_FAILED, detail))
    detail = f"the clip is not audio but {headers.looks_like(head)}"
    return BadRecordError(Rejection(Stage.VALIDATE, Reason.NOT_AUDIO, detail))


def _open_soundfile(
    path: Path,
    *,
    part: tuple[int, int] | None = None,
    instead: tuple[int, bytes] | None = None,
    otherwise: Callable[[], Sound | None] | None = None,
) -> _SoundFile | None:
    whole = part is None or part == (0, path.stat().st_size)
    as_it_is = instead is None and whole
    source = str(path) if as_it_is else ClipFile(path, *(part or ()), instead=instead)
    try:
        file = soundfile.SoundFile(source)
    except soundfile.LibsndfileError:
        return None
    guessed = file.format != "MP3" and file.subtype.startswith("MPEG")
    if guessed or file.frames >= _ABSURD_FRAMES:
        file.close()
        return None
    start = part[0] if part else 0
    return _SoundFile(
        file, otherwise or partial(open_av, path, start=start, frames=max(0, int(file.frames)))
    )


class _SoundFile:
    """A clip that libsndfile reads."""

    def __init__(self, file: Any, otherwise: Callable[[], Sound | None]) -> None:
        self._file = file
        self.container = str(file.format).lower()
        self.codec = str(file.subtype).lower()
        self.sample_rate_hz = int(file.samplerate)
        self.channels = int(file.channels)
        self.frames: int | None = max(0, int(file.frames))
        self._otherwise = otherwise

    def blocks(self) -> Iterator[Samples]:
        size = BLOCK_VALUES // self.channels
        while True:
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:
                # libsndfile gives up a whole block for an error anywhere in it
                raise broken(started=True) from None
            if not len(block):
                return
            yield cast("Samples", block)

    def otherwise(self) -> Sound | None:
        """PyAV, held to the length that libsndfile found unless a scan knows it."""
        return self._otherwise()

    def close(self) -> None:
        self._file.close()


def _open_link(path: Path, link: ogg.Link) -> Sound | None:
    """Open one link of an Ogg file."""
    if link.torn:
        detail = "the stream's last page is damaged: only a part of the sound is left"
        raise BadRecordError(Rejection(Stage.VALIDATE, Reason.TRUNCATED, detail))
    by_ffmpeg = partial(open_av, path, link=link)
    sound = None
    if link.likely:
        sound = _open_soundfile(path, part=(link.start, link.end), otherwise=by_ffmpeg)
    if sound is None:
        return by_ffmpeg()
    # it stops at the last page's position, which is a claim: the packets may last longer
    lasts_s = max(packets_s(path, link), link.counted / _OPUS_RATE_HZ) - link.skip / _OPUS_RATE_HZ
    if link.likely:
        clock_hz = _OPUS_RATE_HZ if link.opus else sound.sample_rate_hz
        lasts_s = max(lasts_s, (link.position - link.skip) / clock_hz)
    if sound.frames and lasts_s <= sound.frames / sound.sample_rate_hz + TOLERANCE_S:
        return sound
    sound.close()
    return by_ffmpeg()


def _open_chain(openers: list[Callable[[], Sound | None]]) -> Sound | None:
    """Open streams that stand in one file one behind the other; of one stream, that one."""
    if len(openers) == 1:
        return openers[0]()
    parts = [part for part in map(_Part, openers) if part.rate_hz]
    return _Chain(parts) if parts else None


class _Part:
    """One stream of a chain: what its header says; opened again when it is its turn."""

    def __init__(self, opener: Callable[[], Sound | None]) -> None:
        self.open = opener
        self.rate_hz = self.channels = 0
        try:
            sound = opener()
        except BadRecordError as error:
            if error.rejection.reason is Reason.NOT_AUDIO:
                return
            raise
        if sound is None:
            detail = "one of the streams that are joined in the clip cannot be decoded"
            raise BadRecordError(Rejection(Stage.VALIDATE, Reason.DECODE_FAILED, detail))
        with closing(sound):
            self.rate_hz, self.channels = sound.sample_rate_hz, sound.channels
            self.frames = sound.frames
            self.container, self.codec = sound.container, sound.codec


class _Chain:
    """Several streams joined in one file, heard one behind the other."""

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts
        self.container, self.codec = parts[0].container, parts[0].codec
        self.sample_rate_hz = max(part.rate_hz for part in parts)
        self.channels = max(part.channels for part in parts)
        self.frames: int | None = 0
        for part in parts:
            if part.frames is None or self.frames is None:
                self.frames = None
            else:
                self.frames += -(-part.frames * self.sample_rate_hz // part.rate_hz)

    def blocks(self) -> Iterator[Samples]:
        """The samples in order, at the highest of the streams' rates; channels may change."""
        return at_one_rate(self._blocks(), self.sample_rate_hz)

    def _blocks(self) -> Iterator[tuple[int, Samples]]:
        for part in self._parts:
            sound = part.open()
            if sound is None:
                raise broken(started=True)
            with closing(sound):
                for block in sound.blocks():
                    yield part.rate_hz, block

    def otherwise(self) -> None:
        """FFmpeg is the last that is tried."""
        return

    def close(self) -> None:
        """Nothing is open between two streams."""
