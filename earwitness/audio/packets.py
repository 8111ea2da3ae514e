"""MP3 and AMR: streams whose frames we find ourselves, decoded one by one by FFmpeg.

Decoders guess such a stream's length, stop at a frame that they do not know, or read the first of
several joined files. Here each frame lasts as long as its header says, whatever becomes of it.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from earwitness.audio import amr, mpeg
from earwitness.audio.blocks import (
    at_one_rate,
    broken,
    check_lost,
    frame_samples,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from earwitness.audio.blocks import Samples

_MPEG_DECODERS = {1: "mp1float", 2: "mp2float", 3: "mp3float"}
_MPEG_CODECS = {1: "mpeg_layer_i", 2: "mpeg_layer_ii", 3: "mpeg_layer_iii"}


class _FrameDecoder:
    """Decodes frames of a known length; what cannot be decoded is silence."""

    def __init__(self, codec: str) -> None:
        import av

        self._codec = av.CodecContext.create(codec, "r")
        self._codec.thread_count = 1
        self.decoded = 0
        self.failed = 0

    def decode(self, data: bytes, samples: int, channels: int) -> Samples:
        """A frame's samples: as many as its header says."""
        import av

        blocks: list[Samples] = []
        with suppress(av.FFmpegError, ValueError):
            blocks = [frame_samples(one) for one in self._codec.decode(av.Packet(data))]
        if not blocks:
            self.failed += samples
            return np.zeros((samples, channels), np.float32)
        block = blocks[0]
        self.decoded += samples
        if len(block) < samples:
            block = np.pad(block, ((0, samples - len(block)), (0, 0)))
        return block[:samples]


class MpegSound:
    """An MPEG audio stream, or several joined: each with its own encoder's delay and padding."""

    container = "mp3"

    def __init__(self, path: Path, segments: list[mpeg.Segment]) -> None:
        self._path = path
        self._segments = segments
        self.codec = _MPEG_CODECS[segments[0].form.layer]
        self.sample_rate_hz = max(one.form.rate_hz for one in segments)
        self.channels = max(one.channels for one in segments)
        self.frames: int | None = sum(
            -(-one.heard * self.sample_rate_hz // one.form.rate_hz) for one in segments
        )

    def otherwise(self) -> None:
        """No decoder knows more of it than this one."""
        return

    def blocks(self) -> Iterator[Samples]:
        """The samples in order, at the highest of the stream's rates; channels may change."""
        return at_one_rate(self._parts(), self.sample_rate_hz)

    def _parts(self) -> Iterator[tuple[int, Samples]]:
        lost_s, decoded = 0.0, 0
        with self._path.open("rb") as file, _mapped(file) as data:
            events = mpeg.events(data)
            for segment in self._segments:
                decoder = _FrameDecoder(_MPEG_DECODERS[segment.form.layer])
                blocks = _segment_blocks(data, events, segment, decoder)
                rate_hz = segment.form.rate_hz
                for block in _trimmed(blocks, segment.skip, segment.heard):
                    yield rate_hz, block
                lost_s += (segment.lost + decoder.failed) / rate_hz
                decoded += decoder.decoded
        if not decoded:
            raise broken(started=False)
        check_lost(lost_s)

    def close(self) -> None:
        """Nothing is open between two blocks' uses."""


def _segment_blocks(
    data: mpeg.Data, events: Iterator[mpeg.Event], segment: mpeg.Segment, decoder: _FrameDecoder
) -> Iterator[Samples]:
    """A segment's samples; takes from the events until its last frame."""
    frames = 0
    for event in events:
        if isinstance(event, mpeg.Gap):
            yield np.zeros((event.samples, segment.channels), np.float32)
        elif isinstance(event, mpeg.Frame):
            form = event.form
            # behind a frame that is cut, FFmpeg would read what was in memory before
            body = data[event.offset : event.offset + form.length].ljust(form.length, b"\0")
            yield decoder.decode(body, form.samples, form.channels)
            frames += 1
            if frames == segment.frames:
                return


def _trimmed(blocks: Iterator[Samples], skip: int, heard: int) -> Iterator[Samples]:
    for block in blocks:
        rest = block[skip:]
        skip = max(0, skip - len(block))
        yield rest[:heard]
        heard = max(0, heard - len(rest))


class AmrSound:
    """An AMR file: frames of 20 ms, some of which may say that nobody speaks."""

    container = "amr"
    channels = 1

    def __init__(self, path: Path, kind: amr.Kind, frames: int, start: int = 0) -> None:
        self._path = path
        self._start = start
        self._kind = kind
        self.codec = kind.codec
        self.sample_rate_hz = kind.rate_hz
        self.frames: int | None = frames * kind.samples

    def otherwise(self) -> None:
        """No decoder knows more of it than this one."""
        return

    def blocks(self) -> Iterator[Samples]:
        """The samples in order; pauses are silence."""
        return at_one_rate(self._parts(), self.sample_rate_hz)

    def _parts(self) -> Iterator[tuple[int, Samples]]:
        decoder = _FrameDecoder(self.codec)
        with self._path.open("rb") as file, _mapped(file) as data:
            for frame in amr.frames(data, self._kind, self._start):
                if frame.speech:
                    body = data[frame.offset : frame.offset + frame.length]
                    block = decoder.decode(body, self._kind.samples, 1)
                else:
                    block = np.zeros((self._kind.samples, 1), np.float32)
                yield self.sample_rate_hz, block
        if decoder.failed and not decoder.decoded:
            raise broken(started=False)
        check_lost(decoder.failed / self.sample_rate_hz)

    def close(self) -> None:
        """Nothing is open between two blocks' uses."""


def _mapped(file: Any) -> mmap.mmap:
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
