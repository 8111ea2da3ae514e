"""Why two decoders differ about a file: what its bytes announce, and where decoding fails.

Written from the formats' descriptions; it shares nothing with `earwitness.audio`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Literal

from earwitness.records import Reason
from tests.chaos.pieces import mp3_frame_bytes, mp3_frames, mp3_sound_s, ogg_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.outcome import Outcome
    from tests.chaos.second_decoder import Heard

_FRAME_S = 0.03
_NO_SIZE = 0x7FFFF000
"""A 32-bit size from here on says that none was known."""
_NO_SIZE_64 = 2**62
_MP3_FRAME_BYTES = 24
"""The least a frame can have: 8 kbit/s at 24 kHz."""
_ONLY_LIBSNDFILE = (b"MATLAB 5", b"RIFX", b"NIST_1A")
"""Containers that FFmpeg does not open, or opens for some codecs only."""
_DAMAGE_IS_LOSS = ("flac", "wma", "alac", "ape", "wavpack", "tta", "vorbis", "opus", "aac")
"""Codecs whose every packet is sound: one that cannot be decoded is missing."""
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def why(data: bytes, ours: Outcome, heard: Heard) -> str:
    """Why the two differ, as far as the file's bytes or the decoder's errors say.

    Args:
        data: The file.
        ours: What became of it.
        heard: What FFmpeg makes of it.

    Returns:
        The reason; empty: none is known.
    """
    if ours.word == "decoded":
        return _why_accepted(data, ours, heard)
    if ours.word == Reason.UNSUPPORTED_AUDIO:
        return _why_unsupported(ours, heard)
    if ours.word == Reason.NOT_FINITE:
        return "samples are not numbers" if heard.codec.startswith("pcm_f") else ""
    if ours.word not in {Reason.TRUNCATED, Reason.DECODE_FAILED}:
        return ""
    lacks = missing(data, heard.seconds) if ours.word == Reason.TRUNCATED else ""
    if not lacks and not heard.clean and heard.codec.startswith(_DAMAGE_IS_LOSS):
        return _errors(heard)
    return lacks


def _why_accepted(data: bytes, ours: Outcome, heard: Heard) -> str:
    if ours.duration_s < heard.seconds:
        return ""
    if not heard.codec and data.startswith(_ONLY_LIBSNDFILE):
        return "FFmpeg does not know this container"
    if not heard.codec:
        frames_s = mp3_sound_s(data)
        few = frames_s and abs(frames_s - ours.duration_s) < _FRAME_S
        return "too few frames for FFmpeg to take it for an MP3" if few else ""
    return "" if heard.clean else _errors(heard)


def _why_unsupported(ours: Outcome, heard: Heard) -> str:
    rates = [rate for rate, _ in heard.shapes]
    channels = [count for _, count in heard.shapes]
    if any(not 4_000 <= rate <= 384_000 for rate in rates) and "rate" in ours.detail:
        return f"a rate of {rates[0]:,} Hz"
    if any(count > 8 for count in channels) and "channels" in ours.detail:
        return f"{max(channels)} channels"
    if heard.codec.startswith(("dsd_", "dst")) and "DSD" in ours.detail.upper():
        return f"one-bit sound ({heard.codec})"
    return ""


def _errors(heard: Heard) -> str:
    if heard.bad_packets:
        return f"FFmpeg fails on {heard.bad_packets} of {heard.packets} packets"
    return "FFmpeg stops with an error"


def missing(data: bytes, heard_s: float = 0.0) -> str:
    """What the file announces and does not hold.

    Args:
        data: The whole file.
        heard_s: How much sound of it another decoder hears.

    Returns:
        A phrase with figures; empty: all that it announces is there, or nothing was recognised.
    """
    if data[4:8] == b"ftyp":
        return _beyond(max(_sample_starts(data), default=0), len(data), "the sample table")
    if data[:4] == b"fLaC":
        return _flac(data, heard_s)
    reader = _READERS.get(data[:4], _mp3)
    return reader(data)


def _beyond(end: int, size: int, what: str) -> str:
    return f"{what} announces {end - size:,} bytes more than there are" if end > size else ""


def _riff(data: bytes) -> str:
    if data[:4] == b"RF64":
        size = int.from_bytes(data[28:36], "little") if data[12:16] == b"ds64" else 0
        at = data.find(b"data")
        return _beyond(at + 8 + size, len(data), "ds64") if at > 0 and size < _NO_SIZE_64 else ""
    order: Literal["big", "little"] = "big" if data[:4] == b"RIFX" else "little"
    return _chunk(data, order, b"movi" if data[8:12] == b"AVI " else b"data")


def _chunk(data: bytes, order: Literal["big", "little"], mark: bytes) -> str:
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
        if name == mark or (name == b"LIST" and data[at + 8 : at + 12] == mark):
            known = size < _NO_SIZE
            return _beyond(at + 8 + size, len(data), f"chunk {mark.decode()}") if known else ""
        at += 8 + size + size % 2
    return ""


def _au(data: bytes) -> str:
    start, size = struct.unpack(">II", data[4:12]) if len(data) >= 12 else (0, _NO_SIZE)
    return _beyond(start + size, len(data), "the header") if size < _NO_SIZE else ""


def _w64(data: bytes) -> str:
    at = data.find(b"data\xf3\xac")
    size = int.from_bytes(data[at + 16 : at + 24], "little") if at > 0 else _NO_SIZE_64
    return _beyond(at + size, len(data), "chunk data") if size < _NO_SIZE_64 else ""


def _caf(data: bytes) -> str:
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 12], "big")
        if data[at : at + 4] == b"data":
            return _beyond(at + 12 + size, len(data), "chunk data") if size < _NO_SIZE_64 else ""
        at += 12 + size
    return ""


def _asf(data: bytes) -> str:
    at = data.find(_ASF_FILE_PROPERTIES)
    size = int.from_bytes(data[at + 40 : at + 48], "little") if at > 0 else 0
    return _beyond(size, len(data), "the header") if size < _NO_SIZE_64 else ""


def _matroska(data: bytes) -> str:
    """A cluster that ends behind the end of the file."""
    at = data.rfind(b"\x1f\x43\xb6\x75") + 4
    if at < 4 or at >= len(data) or not data[at]:
        return ""
    width = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    known = size != (1 << 7 * width) - 1
    return _beyond(at + width + size, len(data), "the last cluster") if known else ""


def _ogg(data: bytes) -> str:
    page = ogg_pages(data)[-1]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return "the last page's head is cut"
    whole = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return _beyond(whole, len(page), "the last page")


def _flac(data: bytes, heard_s: float) -> str:
    """More samples in STREAMINFO than anybody hears."""
    packed = int.from_bytes(data[18:26], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    if not rate or samples / rate <= heard_s + 0.01:
        return ""
    return f"STREAMINFO announces {samples / rate:.2f} s"


def _mp3(data: bytes) -> str:
    """A count of frames or bytes in a Xing, Info or VBRI header that the file cannot hold."""
    frames = mp3_frames(data)
    if not frames:
        return ""
    start = frames[-1][0]
    whole = mp3_frame_bytes(data[start : start + 4])
    if start + whole > len(data):
        return _beyond(start + whole, len(data), "the last frame")
    first = data[frames[0][0] : frames[0][1]]
    mark = next((mark for mark in (b"Xing", b"Info", b"VBRI") if mark in first), b"")
    at = first.find(mark)
    if not mark or len(first) < at + 18:
        return ""
    size, count = _counts(first, mark, at)
    there = len(data) - frames[0][0]
    if size > there:
        return f"{mark.decode()} announces {size - there:,} bytes more than there are"
    # what looks like no frame may hold some
    if (count - len(frames)) * _MP3_FRAME_BYTES > len(data) - frames[-1][1]:
        return f"{mark.decode()} announces {count:,} frames, {len(frames):,} are there"
    return ""


def _counts(first: bytes, mark: bytes, at: int) -> tuple[int, int]:
    """Bytes and frames that the header at a place announces; 0: it does not."""
    if mark == b"VBRI":
        size, count = struct.unpack_from(">II", first, at + 10)
        return size, count
    flags, one, two = struct.unpack_from(">III", first, at + 4)
    size = (two if flags & 1 else one) if flags & 2 else 0
    return size, one if flags & 1 else 0


def _sample_starts(data: bytes) -> Iterator[int]:
    """Where an MP4's last chunks of samples begin: a lower bound of where they end."""
    for mark, form in ((b"stco", ">I"), (b"co64", ">Q")):
        at = data.find(mark)
        while at > 0 and len(data) >= at + 12:
            count = struct.unpack_from(">I", data, at + 8)[0]
            last = at + 12 + (count - 1) * struct.calcsize(form)
            if count and last + struct.calcsize(form) <= len(data):
                yield struct.unpack_from(form, data, last)[0] + 1
            at = data.find(mark, at + 4)


_READERS: dict[bytes, Callable[[bytes], str]] = {
    b"OggS": _ogg,
    b"RIFF": _riff,
    b"RIFX": _riff,
    b"RF64": _riff,
    b"FORM": lambda data: _chunk(data, "big", b"SSND"),
    b".snd": _au,
    b"riff": _w64,
    b"caff": _caf,
    b"\x1aE\xdf\xa3": _matroska,
    b"0&\xb2u": _asf,
}
