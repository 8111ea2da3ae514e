"""A second decoder to hold ours against: FFmpeg, one packet at a time, whatever the header says.

It knows nothing of `earwitness.audio`. It stops neither at an announced length nor at a packet
that cannot be decoded, counts each frame at that frame's own rate, and decodes each link of a
chained Ogg file by itself, since FFmpeg gives up where the second has another rate.
"""

from __future__ import annotations

import io
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple

import av

from tests.chaos.pieces import mp3_sound_s, mp4_lengths_s, ogg_length_s, ogg_links, ogg_pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FAILURES = (av.FFmpegError, ValueError, OverflowError, ArithmeticError, LookupError)
"""What PyAV raises on damaged data."""
_FFMPEG_INVALID = -22
_RATES_HZ = range(4_000, 384_001)
_SEAM_S = 0.1
_BLOCK_S = 0.05
_LONGEST_FRAME_S = 0.13
"""An AAC frame at 8 kHz: an MP4's padding is within its last frame."""


class Heard(NamedTuple):
    """What FFmpeg makes of a file's first audio stream.

    Attributes:
        container: FFmpeg's name of the container, the first of several; empty: it opens nothing.
        codec: FFmpeg's name of the codec; empty: the file has no audio stream.
        seconds: The sound that was decoded.
        packets: How many packets the stream has.
        bad_packets: How many of them cannot be decoded.
        shapes: The rates and channel counts of its frames, in order of appearance.
        padding_s: How much of this is padding: what frames have beyond the length that MP4 tables
            announce for each, what MP3 encoders say to have added.
        complete: False where reading the container ended with an error, or at the limit.
    """

    container: str = ""
    codec: str = ""
    seconds: float = 0.0
    packets: int = 0
    bad_packets: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    padding_s: float = 0.0
    complete: bool = True

    @property
    def clean(self) -> bool:
        """Whether all of it was read and decoded without an error."""
        return self.seconds > 0 and self.complete and not self.bad_packets

    def at_rate_s(self, rate_hz: int) -> float:
        """How long it is; at the other decoder's rate where FFmpeg's is no rate of any recording.

        A damaged header may name two rates.
        """
        if len(self.shapes) != 1 or self.shapes[0][0] in _RATES_HZ or not rate_hz:
            return self.seconds
        return self.seconds * self.shapes[0][0] / rate_hz


class _Bytes(io.BytesIO):
    """A file that answers a seek to an impossible place with FFmpeg's own error number."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return _FFMPEG_INVALID


def listen(path: Path, *, limit_s: float = float("inf")) -> Heard:
    """Decode a file's first audio stream to its end.

    Args:
        path: Any file.
        limit_s: No need to go on once so much was heard.
    """
    data = _without_rest(path.read_bytes())
    whole = _decoded(data, limit_s)
    if whole.container == "mp3":
        padding_s = max(0.0, whole.seconds - mp3_sound_s(data))
        return whole._replace(padding_s=padding_s)
    if whole.container == "mov":
        behind = [whole.seconds - length_s for length_s in mp4_lengths_s(data)]
        padded = [one_s for one_s in behind if whole.padding_s < one_s < _LONGEST_FRAME_S]
        return whole._replace(padding_s=min(padded, default=whole.padding_s))
    links = ogg_links(data) if data[:4] == b"OggS" else []
    if len(links) < 2:
        # a damaged Opus packet may decode to more than it held
        damaged = whole.codec == "opus" and whole.bad_packets
        behind_s = max(0.0, whole.seconds - ogg_length_s(data)) if damaged else 0.0
        return whole._replace(padding_s=behind_s if behind_s < whole.seconds else 0.0)
    heard = [_with_padding(link, limit_s) for link in links]
    joined = _joined(heard)
    # FFmpeg adds samples where links meet, takes headers for sound, or stops; links are exact
    apart = all(link.clean for link in heard)
    seams_s = _SEAM_S * (len(links) - 1)
    return joined if apart or whole.seconds <= joined.seconds + seams_s else whole


def _with_padding(link: bytes, limit_s: float) -> Heard:
    """A link, with what it has behind its last position noted as padding."""
    heard = _decoded(link, limit_s)
    behind_s = heard.seconds - ogg_length_s(link)
    return heard._replace(padding_s=behind_s if 0 < behind_s < _BLOCK_S else 0.0)


def _without_rest(data: bytes) -> bytes:
    """A file without what FFmpeg takes for sound and is none.

    That is what stands behind the end that an AU or a WAV file announces, and an Ogg page that is
    there for the second time.
    """
    if data[:4] in {b"RIFF", b"RF64"} and data[8:12] == b"WAVE":
        data = _with_all_bits_valid(data)
    if data[:4] == b"OggS":
        return b"".join(b"".join(dict.fromkeys(ogg_pages(link))) for link in ogg_links(data))
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return data[: _wav_end(data)]
    if data[:4] != b".snd" or len(data) < 12:
        return data
    start, size = struct.unpack(">II", data[4:12])
    return data[: start + size] if size and start + size < len(data) else data


def _with_all_bits_valid(data: bytes) -> bytes:
    """An extensible WAV whose samples are valid in all the bits that they are stored in.

    FFmpeg takes the valid bits for those, and hears 16 valid ones in 3 bytes as 16-bit samples. By
    the format's description they only tell how precise a sample is.
    """
    at = data.find(b"fmt ", 12) + 8
    if at < 8 or len(data) < at + 40 or data[at : at + 2] != b"\xfe\xff":
        return data
    channels, block, bits, valid = (
        struct.unpack_from("<H", data, at + place)[0] for place in (2, 12, 14, 18)
    )
    if valid > bits or block != channels * -(-bits // 8):
        return data
    return data[: at + 18] + struct.pack("<H", bits) + data[at + 20 :]


def _wav_end(data: bytes) -> int:
    """Where a WAV ends, if both its sizes agree: the file's and the samples'."""
    end, at = 8 + int.from_bytes(data[4:8], "little"), 12
    while at + 8 <= min(end, len(data)):
        behind = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"data" and at + 8 < behind <= end:
            return end
        at = behind + behind % 2
    return len(data)


def _joined(links: list[Heard]) -> Heard:
    return links[0]._replace(
        seconds=sum(link.seconds for link in links),
        packets=sum(link.packets for link in links),
        bad_packets=sum(link.bad_packets for link in links),
        padding_s=sum(link.padding_s for link in links),
        shapes=tuple(dict.fromkeys(shape for link in links for shape in link.shapes)),
        complete=all(link.complete for link in links),
    )


def _decoded(data: bytes, limit_s: float) -> Heard:
    try:
        container: Any = av.open(_Bytes(data), metadata_errors="replace")
    except _FAILURES:
        return Heard()
    with closing(container):
        name = container.format.name.partition(",")[0]
        if not container.streams.audio:
            return Heard(name)
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            return Heard(name, "unknown")
        return _counted(container, stream, name, limit_s)


def _counted(container: Any, stream: Any, name: str, limit_s: float) -> Heard:
    seconds, padding_s, packets, bad = 0.0, 0.0, 0, 0
    shapes: dict[tuple[int, int], None] = {}
    complete = True
    for packet in _until_error(container.demux(stream)):
        if packet is None or seconds > limit_s:
            complete = False
            break
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except _FAILURES:
            bad += packet.size > 0
            continue
        for frame in frames:
            if frame.sample_rate:
                frame_s = frame.samples / frame.sample_rate
                seconds += frame_s
                shapes[frame.sample_rate, frame.layout.nb_channels] = None
                if name == "mov" and packet.duration and packet.time_base:
                    padding_s += max(0.0, frame_s - float(packet.duration * packet.time_base))
    codec = str(stream.codec_context.name)
    return Heard(name, codec, seconds, packets, bad, tuple(shapes), padding_s, complete)


def _until_error(packets: Iterator[Any]) -> Iterator[Any]:
    """Packets to the end; None in the place of an error, which ends the reading."""
    try:
        yield from packets
    except _FAILURES:
        yield None
