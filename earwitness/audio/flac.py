"""Where a FLAC file's sound ends by its own last frame, and not by what its header says."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from earwitness.audio.mpeg import tag_length

if TYPE_CHECKING:
    from mmap import mmap

    Data = bytes | mmap

_SYNC = re.compile(rb"\xff[\xf8\xf9]", re.DOTALL)
_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL)
_STREAMINFO_END = 42
_TAIL_BYTES = 2**17
"""Twice as long as the largest frame that encoders write: the last one begins in it."""
_LONGEST_TAG_BYTES = 2**24
"""Of a tag between two joined files: pictures are smaller."""
_HEADER_MAX = 16
_BLOCK_SIZES = {1: 192, **{code: 576 << code - 2 for code in range(2, 6)}}
_BLOCK_SIZES |= {code: 256 << code - 8 for code in range(8, 16)}
_CRC8_POLYNOMIAL = 0x07
_CRC16_POLYNOMIAL = 0x8005


def announces_all(data: Data, start: int = 0) -> bool:
    """Whether a FLAC file holds one stream whose header counts its samples, or more.

    Joined files hold several; the count may be 0 or wrong, where it was written before the sound
    was known. More than there are: the file is cut, unless its last frame is whole.

    Args:
        data: The whole file.
        start: Where the stream begins.
    """
    if len(data) < start + _STREAMINFO_END or len(_BEGIN.findall(data, start)) > 1:
        return False
    announced = int.from_bytes(data[start + 21 : start + 26], "big") & 0xF_FFFF_FFFF
    last, begin = last_frame(data, start)
    return announced == last or (announced > last and not (last and _crc16_holds(data[begin:])))


def streams(data: Data, start: int = 0) -> list[tuple[int, int]]:
    """Where each of the streams in a file begins and ends; the next one's tag is left out."""
    begins = [found.start() for found in _BEGIN.finditer(data, start)]
    ends = [*map(partial(_before_tag, data), begins[1:]), len(data)]
    return list(zip(begins, ends, strict=True))


def _before_tag(data: Data, at: int) -> int:
    """Where the ID3v2 tags begin that end at a place; the place itself where there is none."""
    tag = data.rfind(b"ID3", max(0, at - _LONGEST_TAG_BYTES), at)
    while tag >= 0:
        if tag + tag_length(data, tag) == at:
            return _before_tag(data, tag)
        tag = data.rfind(b"ID3", max(0, at - _LONGEST_TAG_BYTES), tag)
    return at


def last_frame(data: Data, begin: int = 0) -> tuple[int, int]:
    """How many samples the stream has by the number in its last frame, and where that begins.

    Both 0: no frame was found.
    """
    start = max(begin + _STREAMINFO_END, len(data) - _TAIL_BYTES)
    tail = data[start:] + bytes(_HEADER_MAX)
    fixed_size = int.from_bytes(data[begin + 8 : begin + 10], "big")
    ends: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for found in _SYNC.finditer(tail):
        header = tail[found.start() : found.start() + _HEADER_MAX]
        end = _frame_end(header, fixed_size)
        if end is not None:
            form = (header[1], header[2] & 0x0F, header[3] & 0x0F)
            ends.setdefault(form, []).append((end, start + found.start()))
    # a false header among samples differs in what is the same in all true ones
    likely = sorted(ends.values(), key=len)
    return max(likely[-1]) if likely else (0, 0)


def _frame_end(header: bytes, fixed_size: int) -> int | None:
    """The sample behind a frame; None: these bytes are no frame's header."""
    if len(header) < _HEADER_MAX or header[3] & 1:
        return None
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    more = max(0, ones - 1)
    if ones == 1 or ones == 8:  # noqa: PLR1714, PLR2004 - no first byte of a coded number
        return None
    number = header[4] & (0x7F >> ones)
    for byte in header[5 : 5 + more]:
        if byte >> 6 != 2:  # noqa: PLR2004 - a continuation byte
            return None
        number = number << 6 | byte & 0x3F
    at = 5 + more
    code, rate = header[2] >> 4, header[2] & 0x0F
    size = _BLOCK_SIZES.get(code, 0)
    if code in {6, 7}:
        width = code - 5
        size = int.from_bytes(header[at : at + width], "big") + 1
        at += width
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if not size or rate == 15 or _crc8(header[:at]) != header[at]:  # noqa: PLR2004 - forbidden
        return None
    return number + size if header[1] & 1 else number * fixed_size + size


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ _CRC8_POLYNOMIAL if value & 0x80 else value << 1) & 0xFF
    return value


def _crc16_holds(frame: bytes) -> bool:
    """Whether the bytes are one whole frame: its last two are the checksum of the others."""
    value = 0
    for byte in frame:
        value = (value << 8 & 0xFF00) ^ _CRC16[value >> 8 ^ byte]
    return value == 0


def _crc16_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = (value << 1 ^ _CRC16_POLYNOMIAL if value & 0x8000 else value << 1) & 0xFFFF
        table.append(value)
    return table


_CRC16 = _crc16_table()
