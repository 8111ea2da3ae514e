"""Seeded damage to clips: every way a file is broken, cut, patched together or made to lie."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

ABSURD = (0, 1, 2, 255, 65_535, 65_536, 2**31 - 1, 2**31, 0xFFFFFFFE, 0xFFFFFFFF, 999_999_999)
_MARKERS = (
    b"fmt ", b"data", b"fact", b"ds64", b"COMM", b"SSND", b"FVER", b"desc", b"pakt", b"kuki",
    b"fLaC", b"OpusHead", b"\x01vorbis", b"mvhd", b"mdhd", b"stsd", b"stsz", b"stts", b"stsc",
    b"stco", b"mp4a", b"alac", b"esds", b"trun", b"tfhd", b"trex", b"elst", b"mdat", b"moov",
    b"wvpk", b"TTA1", b"Xing", b"Info", b"LAME", b"strf", b"strh", b"idx1",
    # Matroska's elements of track and cluster: frequency, channels, codec private, block, duration
    b"\xb5", b"\x9f", b"\x63\xa2", b"\xa3", b"\x44\x89", b"\x2a\xd7\xb1",
)  # fmt: skip


def damaged(clips: dict[str, bytes], name: str, dice: Random) -> tuple[str, bytes]:
    """One clip, broken.

    Args:
        clips: Whole clips by name; pieces of others may be mixed in.
        name: Which to break.
        dice: Decides everything.

    Returns:
        What was done, and the file.
    """
    kind = dice.choice(list(_WAYS))
    data = _WAYS[kind](clips, name, dice)
    if dice.random() < 0.15:
        second = dice.choice(list(_WAYS))
        data = _WAYS[second]({**clips, name: data}, name, dice)
        kind += "+" + second
    if b"OggS" in data[:4] and dice.random() < 0.7:
        data = with_checksums(data)
    return kind, data


def _flips(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    data = bytearray(clips[name])
    # headers are small: half of the damage goes there
    reach = len(data) if dice.random() < 0.5 else min(len(data), 256)
    for _ in range(dice.choice([1, 2, 5, 20, 200])):
        if reach:
            data[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    return bytes(data)


def _cut(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    return clips[name][: dice.randrange(len(clips[name]) + 1)]


def _stub(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    return clips[name][: dice.randrange(65)]


def _headless(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    return clips[name][dice.randrange(1, 200) :]


def _spliced(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    """The header of one container and the body of another."""
    other = clips[dice.choice(list(clips))]
    head = dice.choice([4, 12, 44, 64, 128, dice.randrange(2_000)])
    return clips[name][:head] + other[dice.choice([0, head, dice.randrange(len(other) + 1)]) :]


def _lying(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    """Absurd numbers at and after the marks that rates, channels, counts and sizes follow."""
    data = bytearray(clips[name])
    found = [data.find(mark) + len(mark) for mark in _MARKERS if mark in data]
    for _ in range(dice.choice([1, 1, 2, 4])):
        start = dice.choice([*found, 0, 4])
        # sizes stand before the mark in MP4, after it elsewhere
        _patch(data, max(0, start + dice.randrange(-10, 40)), dice)
    return bytes(data)


def _fields(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    """Absurd numbers anywhere in the first part of the file."""
    data = bytearray(clips[name])
    for _ in range(dice.choice([1, 2, 5])):
        if data:
            _patch(data, dice.randrange(min(len(data), 400)), dice)
    return bytes(data)


def _patch(data: bytearray, at: int, dice: Random) -> None:
    value, order = dice.choice(ABSURD), dice.choice("<>")
    size = dice.choice("BHIQ")
    mask = 2 ** (8 * struct.calcsize(size)) - 1
    packed = struct.pack(order + size, (value if value < 2**31 else value * (2**32 + 1)) & mask)
    data[at : at + len(packed)] = packed


def _repeated(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    data = clips[name]
    start = dice.randrange(len(data) + 1)
    end = dice.randrange(start, min(len(data), start + 4_000) + 1)
    return data[:end] + data[start:end] * dice.choice([1, 10, 100]) + data[end:]


def _shuffled(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    data, size = clips[name], dice.choice([16, 256, 1024])
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    kept, rest = pieces[:1], pieces[1:]
    dice.shuffle(rest)
    return b"".join(kept + rest)


def _wrapped(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    """Something else before it or after it: tags that lie about their size, junk, other audio."""
    tag = b"ID3\x04\x00\x00" + bytes(dice.randrange(128) for _ in range(4))
    other = clips[dice.choice(list(clips))]
    before = dice.choice([b"", tag, b"\0" * dice.randrange(5_000), dice.randbytes(50), other])
    after = dice.choice([b"", b"TAG" + bytes(125), dice.randbytes(500), other])
    return before + clips[name] + after


def _holed(clips: dict[str, bytes], name: str, dice: Random) -> bytes:
    """A stretch of zeros or noise inside: a sparse or half-written file."""
    data = clips[name]
    start = dice.randrange(len(data) + 1)
    length = dice.randrange(len(data) - start + 1)
    hole = bytes(length) if dice.random() < 0.5 else dice.randbytes(length)
    return data[:start] + hole + data[start + length :]


_WAYS: dict[str, Callable[[dict[str, bytes], str, Random], bytes]] = {
    "flips": _flips,
    "cut": _cut,
    "stub": _stub,
    "headless": _headless,
    "spliced": _spliced,
    "lying": _lying,
    "fields": _fields,
    "repeated": _repeated,
    "shuffled": _shuffled,
    "wrapped": _wrapped,
    "holed": _holed,
}


def with_checksums(data: bytes) -> bytes:
    """An Ogg file whose pages have the checksums of what they hold now; else they are skipped."""
    fixed = bytearray(data)
    at = fixed.find(b"OggS")
    while at >= 0 and at + 27 <= len(fixed):
        segments = fixed[at + 26]
        end = at + 27 + segments + sum(fixed[at + 27 : at + 27 + segments])
        fixed[at + 22 : at + 26] = bytes(4)
        fixed[at + 22 : at + 26] = struct.pack("<I", _ogg_crc(fixed[at:end]))
        at = fixed.find(b"OggS", max(end, at + 4))
    return bytes(fixed)


def _ogg_crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
        table.append(value)
    return table


_CRC = _ogg_crc_table()


def _ogg_crc(page: bytes) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFF00) ^ _CRC[value >> 24 ^ byte]
    return value
