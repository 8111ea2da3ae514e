"""Where raw streams of frames end by the size in the last frame's header.

AAC (ADTS and LOAS), AC-3, E-AC-3 and DTS frames, MPEG transport and program streams. A stream that
loses its rhythm on the way is not followed further: decoders look for the next frame then, and what
is lost is theirs to tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from earwitness.audio.mpeg import syncsafe

if TYPE_CHECKING:
    from collections.abc import Callable
    from mmap import mmap

    Data = mmap

_TS_PACKET = 188
_AC3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_MIN_FRAMES = 3
"""So many frames in a row are no accident."""


def end(data: Data) -> int:
    """Where the last frame ends by its own account, or 0: it is no such stream."""
    at = 0
    while data[at : at + 3] == b"ID3":
        at += 10 + syncsafe(data[at + 6 : at + 10])
    if data[at : at + 1] == b"\x47" and data[at + _TS_PACKET : at + _TS_PACKET + 1] == b"\x47":
        return _transport_end(data, at)
    if data[at : at + 4] == b"\0\0\x01\xba":
        return _program_end(data, at)
    for length in (_adts, _loas, _ac3, _dts):
        found = _chain_end(data, at, length)
        if found:
            return found
    return 0


def _chain_end(data: Data, at: int, length: Callable[[bytes], int]) -> int:
    count, start = 0, at
    while at < len(data):
        head = data[at : at + 16]
        size = length(head)
        if not size:
            # less than a header is left, and it begins like one
            begun = len(head) < 16 and head[:1] == data[start : start + 1]  # noqa: PLR2004 - what is read of a header
            return at + 16 if begun and count >= _MIN_FRAMES else 0
        at += size
        count += 1
    return at if count >= _MIN_FRAMES else 0


def _adts(head: bytes) -> int:
    """Bytes of an AAC frame (ISO/IEC 13818-7, section 6.2); 0: it is none."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:  # noqa: PLR2004 - header and sync
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size >= 7 else 0  # noqa: PLR2004 - its own header


def _loas(head: bytes) -> int:
    if len(head) < 3 or head[0] != 0x56 or head[1] & 0xE0 != 0xE0:  # noqa: PLR2004 - header and sync
        return 0
    return 3 + ((head[1] & 0x1F) << 8 | head[2])


def _ac3(head: bytes) -> int:
    """Bytes of an AC-3 or E-AC-3 frame (ETSI TS 102 366); 0: it is none."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":  # noqa: PLR2004 - the fields read here
        return 0
    if head[5] >> 3 > 10:  # noqa: PLR2004 - E-AC-3's bit stream identification
        return 2 * (((head[2] & 7) << 8 | head[3]) + 1)
    rate, code = head[4] >> 6, head[4] & 0x3F
    if rate == 3 or code >> 1 >= len(_AC3_KBPS):  # noqa: PLR2004 - reserved
        return 0
    kbps = _AC3_KBPS[code >> 1]
    return 2 * {0: 2 * kbps, 1: kbps * 320 // 147 + (code & 1), 2: 3 * kbps}[rate]


def _dts(head: bytes) -> int:
    if len(head) < 8 or head[:4] != b"\x7f\xfe\x80\x01":  # noqa: PLR2004 - the fields read here
        return 0
    return ((head[5] & 3) << 12 | head[6] << 4 | head[7] >> 4) + 1


def _transport_end(data: Data, at: int) -> int:
    """MPEG-TS: cut within a packet of the transport, or of what it carries."""
    left: dict[int, int] = {}
    while at + _TS_PACKET <= len(data):
        packet = data[at : at + _TS_PACKET]
        if packet[0] != 0x47:  # noqa: PLR2004 - sync
            return 0
        at += _TS_PACKET
        body = 5 + packet[4] if packet[3] & 0x20 else 4
        number = (packet[1] & 0x1F) << 8 | packet[2]
        payload = packet[body:] if packet[3] & 0x10 else b""
        if packet[1] & 0x40 and payload[:3] == b"\0\0\x01":
            announced = int.from_bytes(payload[4:6], "big")
            left[number] = announced + 6 - len(payload) if announced else 0
        elif number in left:
            left[number] -= len(payload)
    begun = at < len(data) and data[at] == 0x47  # noqa: PLR2004 - sync
    return (at + _TS_PACKET if begun else len(data)) + max(0, *left.values(), 0)


def _program_end(data: Data, at: int) -> int:
    """MPEG program stream: packs and packets, each with its size."""
    while data[at : at + 3] == b"\0\0\x01" and at + 14 <= len(data):
        kind = data[at + 3]
        if kind == 0xB9:  # noqa: PLR2004 - the end
            return at + 4
        if kind == 0xBA:  # noqa: PLR2004 - a pack: MPEG-2's has 14 bytes and stuffing, MPEG-1's 12
            at += 14 + (data[at + 13] & 7) if data[at + 4] >> 6 else 12
        else:
            at += 6 + int.from_bytes(data[at + 4 : at + 6], "big")
    begun = at < len(data) and b"\0\0\x01".startswith(data[at : at + 3])
    return at + 14 if begun else at
