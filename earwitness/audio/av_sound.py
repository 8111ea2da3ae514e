"""Clips that PyAV (FFmpeg) reads, packet by packet."""

from __future__ import annotations

import errno
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from earwitness.audio import amr
from earwitness.audio.blocks import (
    TOLERANCE_S,
    at_one_rate,
    broken,
    check_lost,
    frame_samples,
)
from earwitness.errors import BadRecordError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from earwitness.audio.blocks import Samples
    from earwitness.audio.ogg import Link

_FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,iff,loas,m4a,matroska,mov,mp3,mp4,"
    "3g2,3gp,mj2,mpc,mpc8,mpeg,mpegts,ogg,rm,tak,tta,voc,w64,wav,webm,wv"
)
_ANNOUNCING = {"flac", "wv", "tta", "tak", "ape", "dsf"}
"""Containers that store the length of the sound. Others leave it to guesses, or store it for all
that they hold (a video, subtitles, a late start), or beside a table of what is there (MP4)."""
_ABSURD = 2**31
_PACKET_S = 0.02
"""How long a packet lasts that does not say."""


class ClipFile(io.FileIO):
    """A file, or a part of one, for FFmpeg, which seeks wherever a damaged header sends it.

    It is told so as its own callbacks tell it, by a negative number; an exception from here would
    be raised to our caller instead, as if the disk were at fault.

    Args:
        path: The file.
        start: Where the part begins that is read as a file of its own.
        end: Where it ends; None: at the end of the file.
        instead: A place in the part, and the bytes that are read there instead of the file's.
    """

    def __init__(
        self,
        path: Path,
        start: int = 0,
        end: int | None = None,
        *,
        instead: tuple[int, bytes] | None = None,
    ) -> None:
        super().__init__(path)
        self._start = start
        self._instead = instead
        self._end = super().seek(0, io.SEEK_END) if end is None else end
        super().seek(start)

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes of the part, never of what follows it."""
        left = max(0, self._end - super().tell())
        wanted = left if size is None or size < 0 else min(size, left)
        begin = self.tell()
        data = super().read(wanted) or b""
        if self._instead is None:
            return data
        place, other = self._instead[0] - begin, self._instead[1]
        first, last = max(0, place), min(len(data), place + len(other))
        return (
            data[:first] + other[first - place : last - place] + data[last:]
            if first < last
            else data
        )

    def readinto(self, buffer: Any, /) -> int:
        """Likewise, into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def tell(self) -> int:
        """Position within the part."""
        return super().tell() - self._start

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move within the part; a negative number where there is no such place."""
        base = {0: self._start, 1: super().tell(), 2: self._end}.get(whence, -1)
        if base < 0 or base + offset < self._start:
            return -errno.EINVAL
        try:
            return super().seek(base + offset) - self._start
        except (ValueError, OverflowError):
            return -errno.EINVAL
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return -errno.EINVAL


def open_av(
    path: Path, *, start: int = 0, link: Link | None = None, frames: int | None = None
) -> AvSound | None:
    """Open a clip, or one link of an Ogg chain.

    Args:
        path: The clip.
        start: Where its container begins.
        link: Which part of the file is read, as a file of its own.
        frames: The length another decoder found in the header.

    Returns:
        The opened clip; None: FFmpeg cannot open it.

    Raises:
        BadRecordError: `not_audio`: there is no audio track; `unsupported_audio`: no decoder
            here knows its codec.
    """
    import av

    file = ClipFile(path, link.start, link.end) if link else ClipFile(path, start)
    try:
        # from an open file, and only these formats: a playlist must not make FFmpeg open the
        # addresses it names
        container = av.open(file, metadata_errors="replace", options={"format_whitelist": _FORMATS})
    except (av.FFmpegError, ValueError):
        file.close()
        return None
    known = [one for one in container.streams.audio if one.codec_context is not None]
    if known:
        return AvSound(file, container, known[0], link=link, frames=frames)
    has_audio, others = bool(container.streams.audio), len(container.streams)
    container.close()
    file.close()
    if has_audio:
        reason, detail = (
            Reason.UNSUPPORTED_AUDIO,
            "the clip's codec is not supported",
        )
    elif others:
        reason, detail = Reason.NOT_AUDIO, "the clip has no audio track, only video or other data"
    else:
        return None
    raise BadRecordError(Rejection(Stage.VALIDATE, reason, detail))


def packets_s(path: Path, link: Link) -> float:
    """How long the packets of an Ogg link last together, as far as they can be read."""
    import av

    ticks, tick_s = 0, 0.0
    try:
        with (
            ClipFile(path, link.start, link.end) as file,
            av.open(
                file, metadata_errors="replace", options={"format_whitelist": "ogg"}
            ) as container,
        ):
            stream = container.streams.audio[0]
            tick_s = float(stream.time_base)
            for packet in container.demux(stream):
                # the last packet's may be negative, written without a sign
                ticks += packet.duration if 0 < (packet.duration or 0) < _ABSURD else 0
    except (av.FFmpegError, IndexError, ValueError):
        pass  # what was read until here lasts so long
    return ticks * tick_s


class AvSound:
    """A clip that FFmpeg reads; of a video, its first audio stream that has a decoder.

    Packets that cannot be decoded are heard as silence, up to a second of them; where the last
    ones cannot, the clip is truncated.
    """

    def __init__(
        self,
        file: Any,
        container: Any,
        stream: Any,
        *,
        link: Link | None = None,
        frames: int | None = None,
    ) -> None:
        self._file = file
        self._container = container
        self._stream = stream
        self._packets = iter(container.demux(stream))
        name = str(container.format.name).partition(",")[0]
        self._tabled = name == "mov"
        self.container = {"mov": "mp4"}.get(name, name)
        self.codec = str(stream.codec_context.name)
        self.sample_rate_hz = int(stream.rate or 0)
        self.channels = int(stream.channels or 0)
        self.frames = frames or (self._linked(link) if link else self._announced(name))

    def otherwise(self) -> None:
        """FFmpeg is the last that is tried."""
        return

    def holds_packets(self) -> bool:
        """Whether there is anything to decode."""
        return bool(self._first())

    def _first(self) -> Any:
        """The first packet, which stays to be decoded; None: there is none."""
        import av

        try:
            first = next(self._packets)
        except (av.FFmpegError, StopIteration, ValueError):
            return None
        self._packets = _with_first(first, self._packets)
        return first if first.size else None

    def _announced(self, name: str) -> int | None:
        stream = self._stream
        if name not in _ANNOUNCING or not stream.duration or stream.duration < 0:
            return None
        return round(float(stream.duration * stream.time_base) * self.sample_rate_hz) or None

    def _linked(self, link: Link) -> int | None:
        """The length of an Ogg link by its last page; a recording may begin late in a stream."""
        first = self._first()
        if link.counted:
            return max(0, link.counted - link.skip)
        if first is None or not link.likely:
            return None
        return max(0, link.position - link.skip - max(0, first.pts or 0)) or None

    def blocks(self) -> Iterator[Samples]:
        """The samples in order, at the rate that the header names; channels may change."""
        return at_one_rate(self._parts(), self.sample_rate_hz)

    def _parts(self) -> Iterator[tuple[int, Samples]]:
        lost_s, since_s, given = 0.0, 0.0, 0
        for packet, frames in self._decoded():
            if frames is None:
                since_s += float((packet.duration or 0) * packet.time_base) or _PACKET_S
                continue
            for rate_hz, block in frames:
                if since_s and packet.size:
                    lost_s += since_s
                    check_lost(lost_s)
                    if given:
                        silent = (round(since_s * rate_hz), block.shape[1])
                        yield rate_hz, np.zeros(silent, np.float32)
                    since_s = 0.0
                given += len(block)
                yield rate_hz, block
        if since_s and not self._reached(given):
            raise broken(started=given > 0)

    def _decoded(self) -> Iterator[tuple[Any, list[tuple[int, Samples]] | None]]:
        """Each packet with its frames' rates and samples; None: it cannot be decoded."""
        import av

        started = False
        held: tuple[Any, list[tuple[int, Samples]]] | None = None
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                break
            except (av.FFmpegError, ValueError):
                raise broken(started=started) from None
            try:
                frames: list[tuple[int, Samples]] | None = [
                    (one.sample_rate, frame_samples(one)) for one in packet.decode()
                ]
            except (av.FFmpegError, ValueError):
                # FFmpeg's AMR decoders know no pauses
                pause = amr.pause_samples(self.codec, bytes(packet))
                silence = np.zeros((pause, 1), np.float32)
                frames = [(self.sample_rate_hz, silence)] if pause else None
            if held is not None and frames != []:
                yield held
                held = None
            if frames is None:
                yield packet, None
            elif frames:
                held, started = (packet, frames), True
        if held is not None:
            yield self._without_padding(*held)

    def _without_padding(
        self, packet: Any, frames: list[tuple[int, Samples]]
    ) -> tuple[Any, list[tuple[int, Samples]]]:
        """An MP4's last packet for as long as it lasts by the table: what is left is padding."""
        rate_hz, block = frames[-1]
        lasts = round(float((packet.duration or 0) * packet.time_base) * rate_hz)
        if self._tabled and lasts and len(frames) == 1:
            frames = [(rate_hz, block[:lasts])]
        return packet, frames

    def _reached(self, given: int) -> bool:
        """Whether all is there that is announced, but for what may be missing at the end."""
        missing = math.inf if self.frames is None else self.frames - given
        return missing <= TOLERANCE_S * self.sample_rate_hz

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()
        self._file.close()


def _with_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
