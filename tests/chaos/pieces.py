"""Files taken apart into frames, pages, chunks and boxes, and the tags that stand around them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

_FAMILIES = {
    "wavex": "wav", "aifc": "aiff", "m4a": "mp4", "mov": "mp4", "3gp": "mp4",
    "webm": "mkv", "mka": "mkv",
}  # fmt: skip
_RATES = ((44_100, 48_000, 32_000), (22_050, 24_000, 16_000), (11_025, 12_000, 8_000))
_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)


def family(name: str) -> str:
    """The family of containers of a clip by its name: `m4a-alac` is an MP4."""
    first = name.partition("-")[0]
    return _FAMILIES.get(first, first)


def mp3_frames(data: bytes) -> list[tuple[int, int]]:
    """Where the frames of an MPEG layer III stream stand, the tag before them left out."""
    at = 0
    while data[at : at + 3] == b"ID3":
        at += _id3v2_bytes(data, at)
    frames = []
    while size := mp3_frame_bytes(data[at : at + 4]):
        frames.append((at, min(at + size, len(data))))
        at += size
    return frames


def _id3v2_bytes(data: bytes, at: int) -> int:
    size = data[at + 6 : at + 10]
    return 10 + sum((byte & 0x7F) << 7 * (3 - place) for place, byte in enumerate(size))


def mp3_sound_s(data: bytes) -> float:
    """The least that a stream of MPEG layer III frames holds, wherever they stand.

    Frames that bring a count instead of sound, and the samples that an encoder says to have put
    before and behind the sound, are left out.
    """
    seconds, at = 0.0, 0
    while at + 4 <= len(data):
        if data[at : at + 3] == b"ID3":
            at += _id3v2_bytes(data, at)
            continue
        size = mp3_frame_bytes(data[at : at + 4])
        if not size or at + size > len(data) or not _goes_on(data, at, at + size):
            found = [data.find(mark, at + 1) for mark in (b"\xff", b"ID3")]
            at = min((place for place in found if place >= 0), default=len(data))
            continue
        rate, samples = _mp3_shape(data[at : at + 4])
        frame = data[at : at + size]
        tag = next((mark for mark in (b"Xing", b"Info", b"VBRI") if mark in frame[:40]), None)
        seconds += (-_announced_padding(frame) if tag else samples) / rate
        at += size
    return max(0.0, seconds)


def _goes_on(data: bytes, at: int, end: int) -> bool:
    """Whether a frame that begins at one place is followed by its like, a tag or the end."""
    following = data[end : end + 4]
    alike = bool(mp3_frame_bytes(following)) and following[1] & 0xFE == data[at + 1] & 0xFE
    return alike or end == len(data) or following[:3] in {b"TAG", b"ID3", b"APE", b"LYR"}


def _mp3_shape(head: bytes) -> tuple[int, int]:
    """Rate and samples of a frame."""
    version = {3: 0, 2: 1, 0: 2}[head[1] >> 3 & 3]
    return _RATES[version][head[2] >> 2 & 3], 576 if version else 1152


def _announced_padding(frame: bytes) -> int:
    """The samples before and behind the sound by the field that follows an encoder's name."""
    at = max(frame.find(name) for name in (b"LAME", b"Lavf", b"Lavc"))
    if at < 0 or len(frame) < at + 24:
        return 0
    both = int.from_bytes(frame[at + 21 : at + 24], "big")
    return (both >> 12) + (both & 0xFFF)


def mp3_frame_bytes(head: bytes) -> int:
    """The length of the frame that begins so; 0: none does."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version = {3: 0, 2: 1, 0: 2}.get(head[1] >> 3 & 3)
    bits, rate = head[2] >> 4, head[2] >> 2 & 3
    if version is None or bits in {0, 15} or rate == 3:
        return 0
    slots = 144_000 if version == 0 else 72_000
    return slots * _KBITS[min(version, 1)][bits] // _RATES[version][rate] + (head[2] >> 1 & 1)


def ogg_pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg file; what does not look like one belongs to the page before it."""
    starts, at = [], data.find(b"OggS")
    while at >= 0 and at + 27 <= len(data):
        starts.append(at)
        segments = data[at + 26]
        after = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        at = data.find(b"OggS", after)
    if not starts:
        return [data]
    ends = [*starts[1:], len(data)]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


def ogg_links(data: bytes) -> list[bytes]:
    """The links of a chained Ogg file: each begins with first pages after other pages."""
    links: list[list[bytes]] = []
    before = False
    for page in ogg_pages(data):
        first = len(page) > 5 and bool(page[5] & 2)
        if not links or (first and not before):
            links.append([])
        links[-1].append(page)
        before = first
    return [b"".join(pages) for pages in links]


def ogg_length_s(data: bytes) -> float:
    """The end that an Ogg Opus or Vorbis stream announces: its last position."""
    last, opus, vorbis = data.rfind(b"OggS"), data.find(b"OpusHead"), data.find(b"\x01vorbis")
    if last < 0 or len(data) < max(last, opus, vorbis) + 16:
        return 0.0
    position = struct.unpack_from("<q", data, last + 6)[0]
    if opus >= 0:
        return max(0.0, (position - struct.unpack_from("<H", data, opus + 10)[0]) / 48_000)
    rate = struct.unpack_from("<I", data, vorbis + 12)[0] if vorbis >= 0 else 0
    return max(0.0, position / rate) if rate else 0.0


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a RIFF file, name and content."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return chunks


def riff(data: bytes, chunks: list[tuple[bytes, bytes]], *, padded: bool) -> bytes:
    """A RIFF file like another, of other chunks; those of odd length with a byte behind or not."""
    parts = [
        name + struct.pack("<I", len(held)) + held + bytes(len(held) % 2 if padded else 0)
        for name, held in chunks
    ]
    body = data[8:12] + b"".join(parts)
    return data[:4] + struct.pack("<I", len(body)) + body


def boxes(data: bytes) -> list[bytes]:
    """The outermost boxes of an MP4."""
    parts, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + size if size >= 8 else len(data)
        parts.append(data[at:end])
        at = end
    return parts


def mp4_lengths_s(data: bytes) -> list[float]:
    """The length of each of an MP4's tracks by its table of sample durations."""
    lengths = []
    at = data.find(b"stts")
    while at > 0:
        media = data.rfind(b"mdhd", 0, at) + 16
        rate = int.from_bytes(data[media : media + 4], "big") if media >= 16 else 0
        entries = data[at + 12 : at + 12 + 8 * int.from_bytes(data[at + 8 : at + 12], "big")]
        if rate and entries and len(entries) % 8 == 0:
            lengths.append(
                sum(many * each for many, each in struct.iter_unpack(">II", entries)) / rate
            )
        at = data.find(b"stts", at + 4)
    return lengths


def id3v2(dice: Random) -> bytes:
    """A well-formed ID3v2 tag of odd size, whose content may look like frames of sound."""
    size = dice.choice([0, 1, 35, 127, 128, 1_000, 5_000, 20_000])
    held = dice.choice([bytes(size), dice.randbytes(size), (b"\xff\xfb\x90\x64" * size)[:size]])
    syncsafe = bytes(size >> 7 * place & 0x7F for place in (3, 2, 1, 0))
    return b"ID3" + bytes([dice.choice([3, 4]), 0, 0]) + syncsafe + held


def tags_behind(dice: Random) -> bytes:
    """What taggers put behind the sound: APEv2, Lyrics3, ID3v1, in any number."""
    item = struct.pack("<II", 8, 0) + b"Title\0" + b"8 bytes."
    size = len(item) + 32
    ape = [
        struct.pack("<8sIIIIQ", b"APETAGEX", 2000, size, 1, flags, 0)
        for flags in (0xA0000000, 0x80000000)
    ]
    tags = [ape[0] + item + ape[1], item + ape[1], b"LYRICSBEGININD0000200000025LYRICS200"]
    tags += [b"TAG" + bytes(125), b"TAG" + dice.randbytes(125)]
    return b"".join(dice.sample(tags, dice.choice([1, 1, 2, 3])))
