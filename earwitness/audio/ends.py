"""Whether all is there that a container announces in bytes. No decoding.

Decoders read a cut file up to its end without a word; what the bytes announce tells. The sizes of
chunks, boxes, blocks and frames are looked at, in every container where there are any. Where they
end exactly at the end of the file, nothing shows whether there was more: a raw stream (AAC, AC-3,
DTS, AMR, MP3 without a Xing header, MPEG-TS, Ogg, a fragmented MP4, a live WebM) cut between two
frames, pages or fragments, and containers that store no length at all (PAF, IRCAM, PVF, XI).

A size that a WAV file cannot have says nothing: 0, or what writers to a pipe put there because they
do not know it. The samples then go to the end of the file. So they do where the RIFF size, which
counts the whole file, says that the file is whole. Bytes behind the samples' announced end are
other chunks, tags or padding and no sound, as every decoder takes them.
"""

from __future__ import annotations

import mmap
import re
from typing import TYPE_CHECKING, Literal, cast

from earwitness.audio import amr, frames, ogg, tags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Data = mmap.mmap
    Order = Literal["little", "big"]

SLACK_BYTES = 64
"""Some writers count their own header (44 bytes in WAV) into the length they announce."""
_PLACEHOLDER = 2**28
"""What a WAV announces beyond this, and four times what is there, is no length but a placeholder.

2,000,000,000, 1 GiB, 0x7FFFFFFF and the like; no clip is that large (`max_clip_bytes`).
"""
_UNKNOWN_LENGTH = 0x7FFFF000
"""Writers to a pipe announce this (sox) or 0xFFFFFFFF (ffmpeg): the length was not known."""
_UNKNOWN_LENGTH_64 = 2**62
_MAX_CHUNKS = 10_000
"""A file in more pieces than this, most of them empty, is not searched to its end."""
_BLOCK_CODECS = {2, 0x11, 0x31, 0x45, 0x55}
"""WAV codecs of which a decoder drops a block that is not whole: ADPCM, GSM, G.726, MP3."""
_WAVES = {b"RIFF", b"RIFX", b"RF64", b"BW64"}
_SAMPLE_CODECS = {1, 3}
"""WAV codecs of which a block is one sample of each channel: integers and floats."""
_EXTENSIBLE = 0xFFFE
_BOXES = frozenset(
    b"ftyp moov mdat free skip wide udta uuid moof mfra sidx ssix styp meta pdin pnot emsg".split()
)


_BOXES_AT_START = {b"ftyp", b"moov", b"mdat"}
_OPEN_ENDED = {0x18538067, 0x1F43B675}
"""Matroska's Segment and Cluster."""
_ELEMENTS = _OPEN_ENDED | {
    *(0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770),
    *(0x1254C367, 0xEC, 0xBF),
}
"""Matroska's elements of the two outermost levels; anything else is no element but behind them."""
_ASF_OBJECTS = {b"\x30\x26\xb2\x75", b"\x36\x26\xb2\x75", b"\x90\x08\x00\x33"}
_ASF_OBJECTS |= {b"\xd3\x29\xe2\xd6", b"\xf8\x03\xb1\xfe", b"\xd0\x3f\xb7\x3c"}
"""How the names of WMA's outermost objects begin: header, data, and kinds of index."""


def missing_bytes(path: Path) -> int:
    """How many bytes a container announces beyond the end of the file.

    Args:
        path: The clip.

    Returns:
        0 when all is there, or when nothing tells.
    """
    with path.open("rb") as file:
        if not file.read(1):
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _missing(seen(data, tags.container_start(data)))


def seen(data: Data, start: int) -> Data:
    """What is looked at of a file whose container begins behind its first tags."""
    # it has all that is used of a map here
    return cast("Data", tags.Behind(data, start)) if start else data


def _missing(data: Data) -> int:
    head = data[:16]
    kind = amr.kind_of(head)
    if kind is not None:
        return amr.missing_bytes(data, kind)
    if head[:4] == b"OggS":
        return ogg.missing_bytes(data)
    for offset, magic, reader in _ENDS:
        if head[offset : offset + len(magic)] == magic:
            missing = reader(data) - len(data)
            in_blocks = reader in _IN_BLOCKS or _in_blocks(data)
            return missing if missing > (0 if in_blocks else SLACK_BYTES) else 0
    return max(0, frames.end(data) - len(data))


def _number(data: Data, at: int, size: int, order: Order) -> int:
    return int.from_bytes(data[at : at + size], order)


def _wave_end(data: Data, order: Order = "little") -> int:
    """Where a WAV's samples end."""
    place = _chunk(data, b"data", order)
    if place is None:
        return 0
    begin, length = place
    there = len(data) - begin
    whole = abs(_number(data, 4, 4, order) + 8 - len(data)) <= 1
    if length == 0 or whole or length >= max(_PLACEHOLDER, 4 * there):
        return 0
    return begin + length


def _in_blocks(data: Data) -> bool:
    """Whether of an incomplete block nothing is heard: then not even a few bytes may be missing."""
    codec = _chunk(data, b"fmt ", "little") if data[8:12] == b"WAVE" else None
    return codec is not None and _number(data, codec[0], 2, "little") in _BLOCK_CODECS


def ends_in_a_block(data: Data) -> bool:
    """Whether the samples of a WAV in ADPCM, GSM or the like end within a block."""
    place, codec = _chunk(data, b"data", "little"), _chunk(data, b"fmt ", "little")
    if place is None or codec is None or not _in_blocks(data):
        return False
    block = max(1, _number(data, codec[0] + 12, 2, "little"))
    return bool(min(place[1], len(data) - place[0]) % block)


def contradiction(data: Data) -> str:
    """What a header says that cannot be true, as a part of a message; empty: nothing was found."""
    return _wave_contradiction(data) or _fragment_contradiction(data)


def _fragment_contradiction(data: Data) -> str:
    """A fragment of an MP4 with more samples than the file has bytes.

    FFmpeg makes room for each of them before it reads one.
    """
    if data[4:8] not in _BOXES_AT_START:
        return ""
    for fragment in _inner(data, b"moof", 0, len(data)):
        for track in _inner(data, b"traf", *fragment):
            for begin, _ in _inner(data, b"trun", *track):
                count = _number(data, begin + 4, 4, "big")
                if count > len(data):
                    return f"{count:,} packets in a fragment, and {len(data):,} bytes in the file"
    return ""


def _inner(data: Data, name: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Where the contents of an MP4's boxes of one name begin and end, among those of a stretch."""
    for _ in range(_MAX_CHUNKS):
        length, head = _number(data, at, 4, "big"), 8
        if length == 1:
            length, head = _number(data, at + 8, 8, "big"), 16
        if length < head or at >= end:
            return
        if data[at + 4 : at + 8] == name:
            yield at + head, min(at + length, end)
        at += length


def _wave_contradiction(data: Data) -> str:
    """What a WAV's header says of the size of a sample that cannot be true.

    Decoders go by the bits of a sample, FFmpeg by the valid ones among them. If these are wrong,
    all they hear is noise, of another length. The bytes of a block and of a second, which follow
    from the bits, tell. Writers are known to leave the channels out of both.
    """
    place = _format(data)
    if place is None:
        return ""
    at, order = place
    tag, channels = _number(data, at, 2, order), _number(data, at + 2, 2, order)
    rate_hz, bytes_s = _number(data, at + 4, 4, order), _number(data, at + 8, 4, order)
    block, bits = _number(data, at + 12, 2, order), _number(data, at + 14, 2, order)
    extensible = tag == _EXTENSIBLE
    if extensible:
        tag = _number(data, at + 24, 2, order)
    sample = -(-bits // 8)
    if tag not in _SAMPLE_CODECS or not (channels and bits) or block == channels * sample:
        return ""
    valid = _number(data, at + 18, 2, order) if extensible else 0
    differ = bool(valid) and -(-valid // 8) != sample
    agree = block and block % channels == 0 and bytes_s == rate_hz * block and block != sample
    if not (differ or agree):
        return ""
    return f"a sample of {bits} bits, and {block} bytes for one of each channel ({channels})"


def _format(data: Data) -> tuple[int, Order] | None:
    """Where the format of a WAV, RF64 or Wave64 file is described, and in which byte order."""
    if data[:4] == b"riff":
        return (64, "little") if data[40:44] == b"fmt " else None
    if data[:4] not in _WAVES or data[8:12] != b"WAVE":
        return None
    order: Order = "big" if data[:4] == b"RIFX" else "little"
    place = _chunk(data, b"fmt ", order)
    return (place[0], order) if place else None


def _riff_end(data: Data) -> int:
    if data[8:12] == b"WAVE":
        return _wave_end(data)
    length = _number(data, 4, 4, "little") if data[8:12] == b"AVI " else 0
    return 8 + length if 0 < length < _UNKNOWN_LENGTH else 0


def _form_end(data: Data) -> int:
    """AIFF, and the 8- and 16-bit sounds of the Amiga."""
    names = {b"AIFF": b"SSND", b"AIFC": b"SSND", b"8SVX": b"BODY", b"16SV": b"BODY"}
    name = names.get(data[8:12])
    place = _chunk(data, name, "big") if name else None
    return sum(place) if place and place[1] < _UNKNOWN_LENGTH else 0


def size_instead_of_none(data: Data) -> tuple[int, bytes] | None:
    """What a size of 0 in a header has to be for a decoder to read up to the end of the file.

    Returns:
        Where it stands, and its bytes; None: decoders read such a container as it is.
    """
    if data[:4] in {b".snd", b"dns."}:
        return 8, b"\xff" * 4
    place = _chunk(data, b"data", "little")
    if data[:4] in {b"RF64", b"BW64"} and data[12:16] == b"ds64" and place:
        return 28, (len(data) - place[0]).to_bytes(8, "little")
    form = _chunk(data, b"fmt ", "little") if data[:4] == b"RIFF" else None
    if place and form and _number(data, form[0], 2, "little") == _EXTENSIBLE:
        # FFmpeg takes the valid bits of a sample for all that it has
        return place[0] - 4, min(len(data) - place[0], _UNKNOWN_LENGTH).to_bytes(4, "little")
    return None


def _au_end(data: Data) -> int:
    order: Order = "big" if data[:4] == b".snd" else "little"
    length = _number(data, 8, 4, order)
    return _number(data, 4, 4, order) + length if length < _UNKNOWN_LENGTH else 0


def _w64_end(data: Data) -> int:
    """Sony Wave64: like RIFF, with 16 bytes of name and 8 of length."""
    length = _number(data, 16, 8, "little")
    return length if length < _UNKNOWN_LENGTH_64 else 0


def _chunk(data: Data, wanted: bytes, order: Order) -> tuple[int, int] | None:
    """Where a chunk of an IFF or RIFF file begins, and its length."""
    offset = 12
    for _ in range(_MAX_CHUNKS):
        head = data[offset : offset + 8]
        if len(head) < 8:  # noqa: PLR2004 - four letters and a length
            return None
        length = int.from_bytes(head[4:], order)
        if head[:4] == wanted:
            return offset + 8, length
        offset += 8 + length + length % 2
    return None


def _rf64_end(data: Data) -> int:
    """Where an RF64 file should end: its first chunk, `ds64`, says so in 64 bits."""
    length = _number(data, 20, 8, "little")
    known = data[12:16] == b"ds64" and 0 < length < _UNKNOWN_LENGTH_64
    return 8 + length if known else 0


def _caf_end(data: Data) -> int:
    offset = 8
    for _ in range(_MAX_CHUNKS):
        head = data[offset : offset + 12]
        if len(head) < 12:  # noqa: PLR2004 - four letters and a length
            return 0
        length = int.from_bytes(head[4:], "big")
        # samples may say -1: up to the end of the file
        if length >= _UNKNOWN_LENGTH_64:
            return 0
        offset += 12 + length
        if head[:4] == b"data" or offset > len(data):
            return offset
    return 0


def _boxes_end(data: Data) -> int:
    return max(_box_ends(data), default=0)


def _box_ends(data: Data) -> Iterator[int]:
    """Where each of an MP4's outermost boxes should end; what is no box is a tag behind them."""
    offset = 0
    for _ in range(_MAX_CHUNKS):
        length = _number(data, offset, 4, "big")
        if data[offset + 4 : offset + 8] not in _BOXES:
            return
        if length == 1:
            length = _number(data, offset + 8, 8, "big")
        if length < 8:  # noqa: PLR2004 - 0 means "up to the end", anything else is broken
            return
        offset += length
        yield offset


def _matroska_end(data: Data) -> int:
    """Where the last of the elements should end; of unknown size are live recordings' segments."""
    at = end = 0
    for _ in range(_MAX_CHUNKS):
        name, at = _vint(data, at, keep_mark=True)
        size, at = _vint(data, at, keep_mark=False)
        if name not in _ELEMENTS or (size is None and name not in _OPEN_ENDED) or at >= len(data):
            return end
        if size is not None:
            at += size
            end = max(end, at)
    return end


def _vint(data: Data, at: int, *, keep_mark: bool) -> tuple[int | None, int]:
    """An EBML number (RFC 8794, section 4) and the offset behind it; None: all ones, or none."""
    first = data[at] if at < len(data) else 0
    if not first:
        return None, at
    width = 9 - first.bit_length()
    value = _number(data, at, width, "big")
    if keep_mark:
        return value, at + width
    value &= (1 << 7 * width) - 1
    return (None if value == (1 << 7 * width) - 1 else value), at + width


def _asf_end(data: Data) -> int:
    """WMA: objects of 16 bytes of name and 8 of size."""
    at = 0
    for _ in range(_MAX_CHUNKS):
        size = _number(data, at + 16, 8, "little")
        if size < 24 or data[at : at + 4] not in _ASF_OBJECTS:  # noqa: PLR2004 - a name and a size
            break
        at += size
    return at if at < _UNKNOWN_LENGTH_64 else 0


def _nist_end(data: Data) -> int:
    """NIST SPHERE: a header of text that counts the samples."""
    head = data[:4096]
    found = dict(re.findall(rb"\n(\w+) -i (\d+)", head))
    size = re.match(rb"NIST_1A\s+(\d+)", head)
    counts = [int(found.get(name, 0)) for name in (b"sample_count", b"sample_n_bytes")]
    length = counts[0] * counts[1] * int(found.get(b"channel_count", 1))
    return int(size[1]) + length if size and length and b"shorten" not in head else 0


def _voc_end(data: Data) -> int:
    """Creative Voice: blocks of a type and a size of 3 bytes, up to one of type 0."""
    at = _number(data, 20, 2, "little")
    for _ in range(_MAX_CHUNKS):
        if at >= len(data) or not data[at]:
            break
        at += 4 + _number(data, at + 1, 3, "little")
    return at


def _mat5_end(data: Data) -> int:
    """MATLAB 5: elements of a type and a size after 128 bytes of text."""
    order: Order = "little" if data[126:128] == b"IM" else "big"
    at = 128
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        at += 8 + _number(data, at + 4, 4, order)
    return at


def _mat4_end(data: Data) -> int:
    """MATLAB 4: matrices of numbers, each with its size in rows and columns."""
    order: Order = "big" if data[:4] == b"\0\0\x03\xe8" else "little"
    widths = (8, 4, 4, 2, 2, 1)
    at = 0
    for _ in range(_MAX_CHUNKS):
        if at + 20 > len(data):
            break
        kind, rows, columns, _, name = (_number(data, at + 4 * i, 4, order) for i in range(5))
        width = widths[min(kind // 10 % 10, 5)]
        at += 20 + name + rows * columns * width
    return at


def _avr_end(data: Data) -> int:
    """Audio Visual Research: the count of samples in a header of 128 bytes."""
    channels = 2 if _number(data, 12, 2, "big") else 1
    return 128 + _number(data, 26, 4, "big") * channels * (_number(data, 14, 2, "big") // 8)


def _sds_end(data: Data) -> int:
    """MIDI Sample Dump: packets of 127 bytes with 120 of samples, in 2, 3 or 4 bytes each."""
    count = sum(byte << 7 * place for place, byte in enumerate(data[10:13]))
    in_packet = 120 // max(2, -(-data[6] // 7))
    return 21 + -(-count // in_packet) * 127


def _wve_end(data: Data) -> int:
    """Psion: A-law bytes after a header of 32."""
    return 32 + _number(data, 18, 4, "big")


def _wavpack_end(data: Data) -> int:
    at = 0
    while data[at : at + 4] == b"wvpk":
        at += 8 + _number(data, at + 4, 4, "little")
    return at


def _tta_end(data: Data) -> int:
    """True Audio: a table of the frames' sizes behind the header."""
    rate_hz, samples = _number(data, 10, 4, "little"), _number(data, 14, 4, "little")
    in_frame = rate_hz * 256 // 245
    count = -(-samples // in_frame) if in_frame else 0
    table = data[22 : 22 + 4 * count]
    sizes = (int.from_bytes(table[at : at + 4], "little") for at in range(0, len(table), 4))
    return 22 + 4 * count + 4 + sum(sizes)


def _dsf_end(data: Data) -> int:
    return _number(data, 12, 8, "little")


def _flv_end(data: Data) -> int:
    at = end = _number(data, 5, 4, "big") + 4
    # sound, picture or script; the stream's number is always 0
    while data[at : at + 1] in {b"\x08", b"\x09", b"\x12"} and not any(data[at + 8 : at + 11]):
        end = at + 11 + _number(data, at + 1, 3, "big")
        at = end + 4
    return end


def _real_end(data: Data) -> int:
    """RealMedia: chunks of a name and a size."""
    at = 0
    for _ in range(_MAX_CHUNKS):
        size = _number(data, at + 4, 4, "big")
        if size < 8 or (not data[at : at + 4].isalpha() and at):  # noqa: PLR2004 - a name and a size
            break
        at += size
    return at


def _mpc_end(data: Data) -> int:
    """Akai MPC 2000: the count of samples in a header of 42 bytes."""
    return 42 + _number(data, 30, 4, "little") * (4 if data[21] else 2)


_IN_BLOCKS = {_flv_end, _wavpack_end, _tta_end}
"""Where these end shows a block that is not whole, of which nothing is heard."""

_ENDS: tuple[tuple[int, bytes, Callable[[Data], int]], ...] = (
    (0, b"RIFF", _riff_end),
    (0, b"RIFX", lambda data: _wave_end(data, "big")),
    (0, b"RF64", _rf64_end),
    (0, b"BW64", _rf64_end),
    (0, b"riff", _w64_end),
    (0, b"FORM", _form_end),
    (0, b".snd", _au_end),
    (0, b"dns.", _au_end),
    (0, b"caff", _caf_end),
    (4, b"ftyp", _boxes_end),
    (4, b"moov", _boxes_end),
    (4, b"mdat", _boxes_end),
    (0, b"\x1aE\xdf\xa3", _matroska_end),
    (0, b"0&\xb2u\x8ef\xcf\x11", _asf_end),
    (0, b"NIST_1A", _nist_end),
    (0, b"Creative Voice", _voc_end),
    (0, b"MATLAB 5.0", _mat5_end),
    (0, b"\0\0\x03\xe8\0\0\0\x01\0\0\0\x01", _mat4_end),
    (0, b"\0\0\0\0\x01\0\0\0\x01\0\0\0", _mat4_end),
    (0, b"2BIT", _avr_end),
    (0, b"\xf0\x7e", _sds_end),
    (0, b"ALawSoundFile**", _wve_end),
    (0, b"wvpk", _wavpack_end),
    (0, b"TTA1", _tta_end),
    (0, b"DSD ", _dsf_end),
    (0, b"FLV\x01", _flv_end),
    (0, b".RMF", _real_end),
    (0, b"\x01\x04", _mpc_end),
)
