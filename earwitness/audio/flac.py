"""Where a FLAC file's sound ends by its own last frame, and not by what its header says."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

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
    there, last = _length(data, start, len(data))
    return announced == there or (announced > there and not (last and _crc16_holds(data[last:])))


def streams(data: Data, start: int = 0) -> list[tuple[int, int, int]]:
    """Where each of the streams in a file begins and ends, and how many samples it has.

    The next one's tag is left out. Frames that are lost amid a stream count as samples, too: the
    numbers of its first and its last frame tell. 0: no frame was found.
    """
    begins = [found.start() for found in _BEGIN.finditer(data, start)]
    ends = [*map(partial(_before_tag, data), begins[1:]), len(data)]
    places = zip(begins, ends, strict=True)
    return [(begin, end, _length(data, begin, end)[0]) for begin, end in places]


def _before_tag(data: Data, at: int) -> int:
    """Where the ID3v2 tags begin that end at a place; the place itself where there is none."""
    tag = data.rfind(b"ID3", max(0, at - _LONGEST_TAG_BYTES), at)
    while tag >= 0:
        if tag + tag_length(data, tag) == at:
            return _before_tag(data, tag)
        tag = data.rfind(b"ID3", max(0, at - _LONGEST_TAG_BYTES), tag)
    return at


def _length(data: Data, begin: int, end: int) -> tuple[int, int]:
    """How many samples a stream has by its frames' numbers, and where the last frame begins.

    Both 0: no frame was found.
    """
    at = _metadata_end(data, begin)
    first = _frame(data[at : at + _HEADER_MAX])
    # a header may name another size than the frames have
    size = first.samples if first else int.from_bytes(data[begin + 8 : begin + 10], "big")
    start = max(begin + _STREAMINFO_END, end - _TAIL_BYTES)
    tail = data[start:end] + bytes(_HEADER_MAX)
    likely: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for found in _SYNC.finditer(tail):
        frame = _frame(tail[found.start() : found.start() + _HEADER_MAX])
        if frame:
            place = start + found.start()
            likely.setdefault(frame.form, []).append((frame.begin(size) + frame.samples, place))
    if not likely:
        return 0, 0
    # a false header among samples differs in what is the same in all true ones
    *_, likeliest = sorted(likely.values(), key=len)
    samples, last = max(likeliest)
    # a stream that was cut out of another one begins later
    return max(0, samples - (first.begin(size) if first else 0)), last


def _metadata_end(data: Data, begin: int) -> int:
    """Where a stream's first frame begins."""
    at = begin + 4
    more = True
    while more and at < len(data):
        more = data[at] < 0x80  # noqa: PLR2004 - the flag of the last block
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return at


class _Frame(NamedTuple):
    number: int
    samples: int
    form: tuple[int, int, int]

    def begin(self, fixed_size: int) -> int:
        """The number of its first sample; `fixed_size`: samples of the frames before it."""
        return self.number if self.form[0] & 1 else self.number * fixed_size


def _frame(header: bytes) -> _Frame | None:
    """What a frame's header says; None: these bytes are none."""
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
    return _Frame(number, size, (header[1], rate, header[3] & 0x0F))


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
