"""The links of an Ogg file: each a whole stream of its own, one behind the other (RFC 3533).

Files joined by `cat` and recorded broadcasts are such chains. Decoders read the first link, or
fail where rate or channels change; so each link is read as a file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from earwitness.audio import tags

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

    Data = bytes | mmap

_PAGE = struct.Struct("<4sBBqIIIB")
_FIRST = 2
_LAST = 4
_OPUS = b"OpusHead"
_AUDIO_HEADS = (b"\x01vorbis", _OPUS, b"\x7fFLAC", b"fLaC", b"Speex   ")
_LONGEST_PACKET = 65_536
"""Samples: the largest FLAC block; Vorbis has 8,192, Opus 5,760."""


class Page(NamedTuple):
    """A page: a piece of one stream.

    Attributes:
        end: Offset behind it; beyond the end of the file where the file is cut within it.
        flags: 2: the first of its stream; 4: the last.
        position: Where its last packet ends, in samples since the stream's beginning.
    """

    offset: int
    end: int
    flags: int
    position: int
    stream: int
    body: int
    packets: int


@dataclass(slots=True)
class Link:
    """One link of a chain.

    Attributes:
        position: The last position of its audio stream: where its sound ends, in samples
            (Opus: of 48 kHz, with the samples before its beginning; later than the position says
            where that leaves out more than the last packet).
        skip: Samples before the sound's beginning, where the stream announces them (Opus).
        audio: Number of its first audio stream; None: it has none that is known.
        packets: How many packets end in that stream's pages.
        regular: Whether positions only grow, so that the last one is the end.
        placed: Whether the last page in which a packet ends has a position.
        counted: Samples of all packets, where they are Opus and the last position is not the end.
        ended: Whether its audio stream's last page says that it is the last.
        torn: Whether bytes that are no page follow a last page that does not say so: they are left
            of a page that was.
    """

    start: int
    end: int
    position: int = 0
    skip: int = 0
    audio: int | None = None
    packets: int = 0
    regular: bool = True
    begun: bool = False
    opus: bool = False
    placed: bool = True
    counted: int = 0
    ended: bool = False
    torn: bool = False

    @property
    def likely(self) -> bool:
        """Whether the last position is the end, and so many packets can hold so many samples."""
        return self.regular and 0 < self.position <= self.packets * _LONGEST_PACKET

    def add(self, page: Page, data: Data) -> None:
        """Note what a page of this link says."""
        self.end = min(page.end, len(data))
        if not page.flags & _FIRST:
            self.begun = True
        elif self.audio is None:
            head = data[page.body : page.body + 19]
            if head.startswith(_AUDIO_HEADS):
                self.audio = page.stream
            if head.startswith(_OPUS):
                self.opus = True
                self.skip = int.from_bytes(head[10:12], "little")
        if page.stream == self.audio:
            self.ended = bool(page.flags & _LAST)
            if page.packets:
                self.placed = page.position >= 0
            if page.position >= 0 and page.packets:
                self.regular = self.regular and page.position >= self.position
                self.position = page.position
            self.packets += page.packets


def links(data: Data) -> list[Link]:
    """The links of an Ogg file, in order."""
    found: list[Link] = []
    for page in pages(data):
        if not found or (page.flags & _FIRST and found[-1].begun):
            found.append(Link(page.offset, page.end))
        found[-1].add(page, data)
    for one, following in zip_longest(found, found[1:]):
        end = following.start if following else len(data)
        if one.opus:
            _hold_to_packets(data, one)
        one.torn = not one.ended and tags.foreign_bytes(data, one.end, end) > 0
    return found


def _hold_to_packets(data: Data, link: Link) -> None:
    """Hold the end that an Opus link announces against the lengths of its packets.

    A last page's position may be before its last packet's end, but "the number of discarded samples
    SHOULD be smaller than the number decoded from the last packet" (RFC 7845, section 4.4).
    """
    counted, end, last = 0, 0, 0
    discarded = 0
    for position, lengths in _opus_pages(data, link):
        counted += sum(lengths)
        end += sum(lengths)
        last = lengths[-1] if lengths else last
        if lengths and position >= 0:
            discarded, end = end - position, position
    if not (link.likely and link.placed):
        link.counted = counted
    elif discarded >= last:
        link.position += discarded


def _opus_pages(data: Data, link: Link) -> Iterator[tuple[int, list[int]]]:
    """Each page's position, and how long the packets last that end in it.

    Packets tell by their own first bytes (RFC 6716, section 3.1). A page that is there twice, by
    its position, stream and number, counts once.
    """
    samples, begins, before = 0, True, b""
    for page in pages(data, link.start):
        if page.offset >= link.end:
            break
        if page.stream != link.audio or data[page.body : page.body + 4] == b"Opus":
            continue
        again, before = before, data[page.offset + 6 : page.offset + 22]
        if before == again:
            continue
        at, lengths = page.body, []
        for size in data[page.offset + _PAGE.size : page.body]:
            samples = _opus_packet(data[at : at + 2]) if begins else samples
            begins, at = size < 255, at + size  # noqa: PLR2004 - 255: it goes on
            if begins:
                lengths.append(samples)
        yield page.position, lengths


def _opus_packet(head: bytes) -> int:
    if not head:
        return 0
    config, count = head[0] >> 3, (1, 2, 2, head[-1] & 0x3F)[head[0] & 3]
    if config < 12:  # noqa: PLR2004 - SILK's; below 16: both; then CELT's
        return (480, 960, 1920, 2880)[config & 3] * count
    return ((480, 960)[config & 1] if config < 16 else 120 << (config & 3)) * count  # noqa: PLR2004


def pages(data: Data, at: int = 0) -> Iterator[Page]:
    """The pages of an Ogg file from a place on; what lies between two pages is passed over.

    Where bytes of a page are lost, the next page begins before the end that it announces.
    """
    while True:
        at = data.find(b"OggS", at)
        head = data[at : at + _PAGE.size] if at >= 0 else b""
        if len(head) < _PAGE.size:
            return
        _, version, flags, position, stream, _, _, segments = _PAGE.unpack(head)
        table = data[at + _PAGE.size : at + _PAGE.size + segments]
        body = at + _PAGE.size + segments
        end = body + sum(table)
        if version:
            at += 4
            continue
        if end < len(data) and data[end : end + 4] != b"OggS":
            within = _head_within(data, body, end)
            end = within if within >= 0 else end
        yield Page(at, end, flags, position, stream, body, sum(size < 255 for size in table))  # noqa: PLR2004 - 255: it goes on
        at = end if end <= len(data) else at + 4


def _head_within(data: Data, start: int, end: int) -> int:
    """Where a page's head begins between two places; -1: nowhere."""
    # a head of no known version is none; it may reach beyond the end
    return data.find(b"OggS\0", start, end + 4)


def missing_bytes(data: Data) -> int:
    """How many bytes the last page announces beyond the end of the file.

    A stream cut between two pages cannot be told from a live recording; one cut within a page can.
    """
    end = 0
    for page in pages(data):
        end = page.end
    at = data.rfind(b"OggS")
    if at >= 0 and len(data) - at < _PAGE.size:
        end = at + _PAGE.size
    return max(0, end - len(data))
