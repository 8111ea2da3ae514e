"""Thousands of distinct clips in the formats people have, made in seconds.

A few dozen sounds a format are encoded once; every clip is one of them with a number of its own in
a place where it costs a decoder nothing: samples, a tag, a box at the end.
"""

from __future__ import annotations

import io
import os
import struct
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import soundfile

from tests.integration.workbench import LONG_AGO_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOUNDS_A_FORMAT = 24
SHORTEST_S, LONGEST_S = 2.0, 6.0
FORMATS = ("wav16", "wav44", "flac48", "mp322", "opus48", "m4a44")
SHARES = (10, 10, 10, 10, 9, 1)
"""Of fifty clips, so many are of each format."""

_PATTERN = [name for name, share in zip(FORMATS, SHARES, strict=True) for _ in range(share)]
_OGG_POLYNOMIAL = 0x04C11DB7


def write_clips(folder: Path, count: int, seed: int = 1) -> list[Path]:
    """Write clips that differ in their bytes, formats in turn, old enough for their stamps.

    Args:
        folder: Where they go, a thousand to a subfolder.
        count: How many.
        seed: Of the sounds.
    """
    draw = np.random.default_rng(seed)
    sounds = {name: [_ENCODERS[name](draw) for _ in range(SOUNDS_A_FORMAT)] for name in FORMATS}
    paths = []
    for number in range(count):
        # 7 and 50 have no common factor: formats come mixed, not in blocks
        name = _PATTERN[7 * number % len(_PATTERN)]
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.{_SUFFIXES[name]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_MARKERS[name](sounds[name][number % SOUNDS_A_FORMAT], number))
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))
        paths.append(path)
    return paths


def _sound(draw: np.random.Generator, rate_hz: int, channels: int) -> Any:
    """Something like a voice: harmonics that come and go, and some noise."""
    times = np.arange(round(draw.uniform(SHORTEST_S, LONGEST_S) * rate_hz)) / rate_hz
    pitch = draw.uniform(90, 260) * (1 + 0.05 * np.sin(2 * np.pi * 3 * times))
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    voice = sum(np.sin(n * phase) / n for n in range(1, 12))
    loud = 0.5 + 0.5 * np.sin(2 * np.pi * draw.uniform(2, 5) * times)
    mono = 0.1 * voice * loud + 0.01 * draw.standard_normal(len(times))
    return np.stack([mono * (1 - 0.1 * n) for n in range(channels)], axis=1).astype(np.float32)


def _soundfile(rate_hz: int, channels: int, **form: str) -> Callable[[np.random.Generator], bytes]:
    def encode(draw: np.random.Generator) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, _sound(draw, rate_hz, channels), rate_hz, **form)
        return file.getvalue()

    return encode


def _m4a(draw: np.random.Generator) -> bytes:
    file = io.BytesIO()
    samples = np.ascontiguousarray(_sound(draw, 44_100, 1).T)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def _marked_wav(data: bytes, number: int) -> bytes:
    """Two samples near the middle, changed."""
    at = len(data) // 8 * 4
    return data[:at] + struct.pack("<hh", number % 9000, number // 9000) + data[at + 4 :]


def _marked_flac(data: bytes, number: int) -> bytes:
    """An application block after STREAMINFO (4 bytes of magic, 4 of header, 34 of content)."""
    block = b"bnch" + number.to_bytes(4, "big")
    return data[:42] + b"\x02" + len(block).to_bytes(3, "big") + block + data[42:]


def _marked_mp3(data: bytes, number: int) -> bytes:
    """An ID3v2.4 tag with one private frame before it."""
    owner = b"bench\0" + number.to_bytes(4, "big")
    frame = b"PRIV" + len(owner).to_bytes(4, "big") + b"\0\0" + owner
    return b"ID3\x04\0\0" + bytes([0, 0, 0, len(frame)]) + frame + data


def _marked_opus(data: bytes, number: int) -> bytes:
    """The first bytes of the vendor string in OpusTags, the second page, and its checksum."""
    start = data.index(b"OggS", 4)
    end = data.index(b"OggS", start + 4)
    page = bytearray(data[start:end])
    vendor = page.index(b"OpusTags") + 12
    page[vendor : vendor + 8] = f"{number:08d}".encode()
    page[22:26] = bytes(4)
    page[22:26] = _ogg_checksum(page).to_bytes(4, "little")
    return data[:start] + bytes(page) + data[end:]


def _ogg_checksum(page: bytearray) -> int:
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1) ^ (_OGG_POLYNOMIAL if value & 0x80000000 else 0)
        value &= 0xFFFFFFFF
    return value


def _marked_m4a(data: bytes, number: int) -> bytes:
    """A box of free space at the end."""
    return data + struct.pack(">I4sQ", 16, b"free", number)


_ENCODERS = {
    "wav16": _soundfile(16_000, 1, format="WAV", subtype="PCM_16"),
    "wav44": _soundfile(44_100, 2, format="WAV", subtype="PCM_16"),
    "flac48": _soundfile(48_000, 1, format="FLAC", subtype="PCM_16"),
    "mp322": _soundfile(22_050, 1, format="MP3"),
    "opus48": _soundfile(48_000, 1, format="OGG", subtype="OPUS"),
    "m4a44": _m4a,
}
_MARKERS = {
    "wav16": _marked_wav,
    "wav44": _marked_wav,
    "flac48": _marked_flac,
    "mp322": _marked_mp3,
    "opus48": _marked_opus,
    "m4a44": _marked_m4a,
}
_SUFFIXES = {
    "wav16": "wav",
    "wav44": "wav",
    "flac48": "flac",
    "mp322": "mp3",
    "opus48": "opus",
    "m4a44": "m4a",
}
