"""What an MPEG audio stream (MP3, MP2, MP1) holds, frame by frame.

An MP3 has no length of its own: a Xing, Info or VBRI frame may announce one, and may be wrong, may
be missing, or may speak of the first of several joined files only. So every frame is looked at.
Frame headers and the side information before a Xing tag are laid out in ISO/IEC 11172-3 and
13818-3; the LAME tag is what LAME, libavformat and others write behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    Data = bytes | mmap

_SYNC = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xef]", re.DOTALL)
_KEPT_BITS = 0xFFFEFEC0
"""Of a header's 32 bits those that decide how long a frame is and how it is decoded."""
_MPEG_1 = 3
_RESERVED_VERSION = 1
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_KBPS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_DECODER_DELAY = 529
"""Samples by which a decoder is late: what LAME's delay and padding are counted without."""
_GAPLESS_WRITERS = (b"LAME", b"Lavf", b"Lavc")
_ID3_HEADER_BYTES = 10
_ID3V1_BYTES = 128
_APE_BYTES = 32
"""Of an APE tag's header, and of its footer."""
_PADDING_BYTES = 64
_XING_FIELDS = ((1, 4), (2, 4), (4, 100), (8, 4))
"""Flag and size of what may stand between a Xing tag's flags and the LAME tag."""


class Form(NamedTuple):
    """What a frame's header says.

    Attributes:
        stream: Version, layer and rate: what stays the same within a stream.
        length: Bytes, the header's four included.
        samples: Samples of each channel.
    """

    stream: tuple[int, int, int]
    length: int
    samples: int
    channels: int

    @property
    def layer(self) -> int:
        """1, 2 or 3."""
        return self.stream[1]

    @property
    def rate_hz(self) -> int:
        """Sample rate."""
        return self.stream[2]


class Tag(NamedTuple):
    """What a Xing, Info or VBRI frame announces of the frames that follow.

    Attributes:
        frames: How many; 0 where it does not say.
        size: How many bytes, its own frame included; 0 where it does not say.
        skip: Samples before the sound's beginning.
        drop: Samples after its end.
    """

    frames: int
    size: int = 0
    skip: int = 0
    drop: int = 0


class Frame(NamedTuple):
    """A frame with sound."""

    offset: int
    form: Form


class Gap(NamedTuple):
    """Samples lost where the bytes between two frames of a stream are no frames."""

    samples: int


@dataclass(slots=True)
class Segment:
    """A stretch of one stream: an encoder's output from its tag, if it has one, to its end.

    Attributes:
        samples: Of all its frames, gaps included.
        lost: Of these, the samples in gaps.
        size: Bytes of its frames, its tag's frame included.
        end: Offset behind its last frame.
    """

    form: Form
    tag: Tag
    frames: int = 0
    size: int = 0
    end: int = 0
    samples: int = 0
    lost: int = 0
    channels: int = 1

    @property
    def untagged(self) -> bool:
        """Whether no tag announces anything."""
        return self.tag == Tag(0)

    @property
    def skip(self) -> int:
        """Samples that the encoder put before the sound."""
        return min(self.tag.skip, self.samples)

    @property
    def heard(self) -> int:
        """Samples of the sound itself."""
        # not the frames that were encoded: cut, or joined to others; its end is not the sound's
        whole = self.samples == self.tag.frames * self.form.samples or not self.tag.frames
        return max(0, self.samples - self.skip - (self.tag.drop if whole else 0))

    @property
    def missing(self) -> int:
        """Samples announced that are not there; none where all the announced bytes are."""
        if 0 < self.tag.size <= self.size:
            return 0
        return max(0, self.tag.frames * self.form.samples - self.samples)


Event = Segment | Frame | Gap


def begins(data: Data) -> bool:
    """Whether a file begins like a stream of frames, be it behind a tag.

    What follows an ID3 tag may as well be FLAC or AAC; before the first frame may be zeros.
    """
    at = skipped = 0
    while data[at : at + 3] == b"ID3":
        skipped = tag_length(data, at)
        if not skipped:
            return False
        at += skipped
    form = _form(data, at)
    if form is not None:
        return _goes_on(data, at, form)
    padding = data[at : at + _PADDING_BYTES]
    return not padding.strip(b"\0") and len(padding) == _PADDING_BYTES


def scan(data: Data) -> list[Segment]:
    """Look at every frame of a file.

    Returns:
        Its segments, in order; none: the file is no MPEG audio, or one whose frames have no length
        in their header ("free format").
    """
    found: list[Segment] = []
    for event in events(data):
        match event:
            case Segment():
                event.size = event.form.length
                found.append(event)
            case Frame(offset=offset, form=form):
                segment = found[-1]
                segment.end = offset + form.length
                segment.frames += 1
                segment.size += form.length
                segment.samples += form.samples
                segment.channels = max(segment.channels, form.channels)
            case Gap(samples=samples):
                found[-1].samples += samples
                found[-1].lost += samples
    return [segment for segment in found if segment.frames]


def events(data: Data) -> Iterator[Event]:
    """A file's stretches, frames and gaps, in order.

    Args:
        data: The whole file.

    Yields:
        A new `Segment` before its first frame; then its frames and gaps.
    """
    stream: tuple[int, int, int] | None = None
    frames = sound_bytes = gap = 0
    end = sound_end(data)
    for offset, length, form in _pieces(data, end):
        if form is None:
            gap += length
            continue
        if offset + form.length > end:
            # the rest is silence: whole files of other programs end like this, too
            if frames:
                yield Frame(offset, form)
            return
        tag = _tag(data, offset, form)
        if tag is not None or form.stream != stream:
            yield Segment(form, tag or Tag(0))
            stream, frames, sound_bytes, gap = form.stream, 0, 0, 0
        if tag is not None:
            continue
        if gap and frames:
            lost = round(gap * frames / sound_bytes)
            if lost:
                yield Gap(lost * form.samples)
        gap = 0
        yield Frame(offset, form)
        frames += 1
        sound_bytes += form.length


def _pieces(data: Data, end: int) -> Iterator[tuple[int, int, Form | None]]:
    """Offset and length of each frame, and of what is none (form None); tags are left out."""
    at, before = 0, None
    while at < end:
        form = _form(data, at)
        if form is not None and (before == form.stream or _goes_on(data, at, form)):
            yield at, form.length, form
            at, before = at + form.length, form.stream
            continue
        skipped = tag_length(data, at)
        if skipped:
            # a size that leads to nothing is wrong: the tag's first bytes are passed over
            at += skipped if _leads_on(data, at + skipped) else _ID3_HEADER_BYTES
            continue
        after = _next_frame(data, at + 1)
        yield at, after - at, None
        at, before = after, None


def sound_end(data: Data) -> int:
    """Where the tags begin that stand at the end of a file (ID3v1, APE, Lyrics3)."""
    end = len(data)
    if end >= _ID3V1_BYTES and data[end - _ID3V1_BYTES : end - _ID3V1_BYTES + 3] == b"TAG":
        end -= _ID3V1_BYTES
    if data[max(0, end - 9) : end] == b"LYRICS200":
        digits = bytes(data[max(0, end - 15) : end - 9])
        end -= 15 + int(digits) if digits.isdigit() else 0
    footer = data[max(0, end - _APE_BYTES) : end]
    if footer[:8] == b"APETAGEX":
        header = _APE_BYTES if footer[23] & 0x80 else 0
        end -= int.from_bytes(footer[12:16], "little") + header
    return max(0, end)


def _next_frame(data: Data, at: int) -> int:
    for found in _SYNC.finditer(data, at):
        form = _form(data, found.start())
        if form is not None and _goes_on(data, found.start(), form):
            return found.start()
        if data[found.start() - 1 : found.start()] == b"\0" and tag_length(data, found.start()):
            return found.start()
    return len(data)


def _goes_on(data: Data, at: int, form: Form) -> bool:
    """Whether another frame of the same stream follows, a tag, or the end of the file."""
    after = at + form.length
    if after >= len(data):
        return after == len(data)
    following = _form(data, after)
    if following is not None:
        return following.stream == form.stream
    return bool(tag_length(data, after))


def _leads_on(data: Data, at: int) -> bool:
    """Whether a frame or a tag begins here, padding, or the file ends."""
    if at >= len(data):
        return at == len(data)
    form = _form(data, at)
    if form is not None:
        return _goes_on(data, at, form)
    return not data[at] or bool(tag_length(data, at))


def _form(data: Data, at: int) -> Form | None:
    head = data[at : at + 4]
    return _form_of(int.from_bytes(head, "big") & _KEPT_BITS) if len(head) == 4 else None  # noqa: PLR2004 - a header's size


@lru_cache(maxsize=4096)
def _form_of(header: int) -> Form | None:
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bit_rate, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == _RESERVED_VERSION or layer == 4:  # noqa: PLR2004 - 11 bits of sync
        return None
    if bit_rate in {0, 15} or rate == 3:  # noqa: PLR2004 - 0: free format; 15 and 3 are forbidden
        return None
    first = version == _MPEG_1
    rate_hz = _RATES_HZ[version][rate]
    bits = _KBPS[first, layer][bit_rate - 1] * 1000
    padding = header >> 9 & 1
    channels = 1 if header >> 6 & 3 == 3 else 2  # noqa: PLR2004 - 3: a single channel
    if layer == 1:
        length, samples = (12 * bits // rate_hz + padding) * 4, 384
    else:
        samples = 576 if layer == 3 and not first else 1152  # noqa: PLR2004 - Layer III halves it
        length = samples // 8 * bits // rate_hz + padding
    return Form((version, layer, rate_hz), length, samples, channels)


def _tag(data: Data, offset: int, form: Form) -> Tag | None:
    """What a frame announces that has a tag in the place of sound; None: it has sound."""
    if form.layer != 3:  # noqa: PLR2004 - the tags are Layer III's
        return None
    frame = data[offset : offset + min(form.length, 256)]
    if frame[36:40] == b"VBRI":
        return Tag(int.from_bytes(frame[50:54], "big"), int.from_bytes(frame[46:50], "big"))
    mono = form.channels == 1
    at = 4 + ((17 if mono else 32) if form.stream[0] == _MPEG_1 else (9 if mono else 17))
    if frame[at : at + 4] not in {b"Xing", b"Info"}:
        return None
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    frames = int.from_bytes(frame[at + 8 : at + 12], "big") if flags & 1 else 0
    sized = at + (12 if flags & 1 else 8)
    size = int.from_bytes(frame[sized : sized + 4], "big") if flags & 2 else 0
    by_flags = at + 8 + sum(size for flag, size in _XING_FIELDS if flags & flag)
    # a writer that sets no flags may leave room for all the fields
    for lame in (by_flags, at + 8 + sum(size for _, size in _XING_FIELDS)):
        if frame[lame : lame + 4] in _GAPLESS_WRITERS:
            both = int.from_bytes(frame[lame + 21 : lame + 24], "big")
            delay, padding = both >> 12, both & 0xFFF
            return Tag(frames, size, delay + _DECODER_DELAY, max(0, padding - _DECODER_DELAY))
    return Tag(frames, size)


def tag_length(data: Data, at: int) -> int:
    """Size of a tag with names and pictures (ID3v2, ID3v1, APE, Lyrics3); 0: there is none."""
    head = data[at : at + 32]
    if head[:3] == b"ID3" and len(head) >= _ID3_HEADER_BYTES:
        footer = _ID3_HEADER_BYTES if head[5] & 0x10 else 0
        return _ID3_HEADER_BYTES + syncsafe(head[6:10]) + footer
    if head[:3] == b"TAG":
        return _ID3V1_BYTES
    if head[:8] == b"APETAGEX":
        return _APE_BYTES + (int.from_bytes(head[12:16], "little") if head[23] & 0x20 else 0)
    if head[:11] == b"LYRICSBEGIN":
        end = max(data.find(b"LYRICS200", at), data.find(b"LYRICSEND", at))
        return end + 9 - at if end > 0 else 0
    return 0


def syncsafe(number: bytes) -> int:
    """ID3v2's way to write a size: seven bits a byte (ID3v2.4, section 3.1)."""
    return sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(number))
