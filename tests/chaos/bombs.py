"""Small files that are, or claim to be, ten hours of audio or more."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from tests.chaos.containers import tone, whole_clips
from tests.chaos.damage import with_checksums

if TYPE_CHECKING:
    from collections.abc import Iterator

HOURS = 10
_RATE_HZ = 8_000


def bombs(hours: int = HOURS) -> Iterator[tuple[str, bytes]]:
    """Each bomb by name, made one at a time."""
    flac = _silent_flac(hours)
    yield "flac: hours of silence", flac
    # the length as "unknown": only decoding can tell
    yield "flac: hours of silence, length not announced", _flac_total(flac, 0)
    yield "flac: a second that announces 2^36 samples", _flac_total(_silent_flac(0), 2**36 - 1)
    clips = whole_clips()
    amr = clips["amr"]
    yield "amr: hours of one frame again and again", amr[:6] + amr[-13:] * (hours * 3600 * 50)
    yield "mp3: hours of one frame again and again", _looped_mp3(hours)
    yield "opus: announces hours", _last_granule(clips["ogg-opus"], hours * 3600 * 48_000)
    yield "vorbis: announces 2^62 samples", _last_granule(clips["ogg-vorbis"], 2**62)
    yield "wav: 64 bytes that announce 4 GB", _wav(0xFFFF0000)
    yield "wav: 64 bytes of unknown length", _wav(0xFFFFFFFF)
    yield "w64: announces 2^62 bytes", _w64(clips["w64"])
    yield "m4a: announces 2^32 samples of 0 bytes", _m4a(clips["m4a"])
    yield "wavpack: a block that announces 2^31 samples", _wavpack(clips["wavpack"])
    yield "wav: ten hours of zeros in a sparse file", _wav(0x7FFF0000 // 2)


def _silent_flac(hours: int) -> bytes:
    file = io.BytesIO()
    silence = np.zeros(_RATE_HZ * 600, np.int16)
    with soundfile.SoundFile(file, "w", _RATE_HZ, 1, format="FLAC") as writer:
        writer.write(np.ones(_RATE_HZ, np.int16) * 9_000)
        for _ in range(hours * 6):
            writer.write(silence)
    return file.getvalue()


def _flac_total(data: bytes, samples: int) -> bytes:
    # STREAMINFO: 36 bits of sample count end 16 bytes (the MD5) before its end
    high = data[21] & 0xF0 | samples >> 32
    return data[:21] + bytes([high]) + struct.pack(">I", samples & 0xFFFFFFFF) + data[26:]


def _looped_mp3(hours: int) -> bytes:
    file = io.BytesIO()
    samples = tone(1.0, _RATE_HZ)
    soundfile.write(file, samples, _RATE_HZ, format="MP3", bitrate_mode="CONSTANT")
    data = file.getvalue()
    mark = data[:2]
    at = [start for start in range(len(data)) if data[start : start + 2] == mark]
    frame = data[at[5] : at[6]]
    return frame * (hours * 3600 * _RATE_HZ // 576)


def _last_granule(data: bytes, granule: int) -> bytes:
    at = data.rfind(b"OggS")
    return with_checksums(data[: at + 6] + struct.pack("<Q", granule) + data[at + 14 :])


def _wav(data_bytes: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16)
    head = b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + form
    return head + b"data" + struct.pack("<I", data_bytes) + b"\x10\x20" * 10


def _w64(data: bytes) -> bytes:
    at = data.find(b"data\xf3\xac")
    return data[: at + 16] + struct.pack("<Q", 2**62) + data[at + 24 :]


def _m4a(data: bytes) -> bytes:
    at = data.find(b"stts")
    changed = data[: at + 12] + struct.pack(">II", 0xFFFFFFFF, 1024) + data[at + 20 :]
    at = changed.find(b"stsz")
    return changed[: at + 8] + struct.pack(">II", 0, 0xFFFFFFFF) + changed[at + 16 :]


def _wavpack(data: bytes) -> bytes:
    # total samples at 12, samples of the block at 20
    return (
        data[:12]
        + struct.pack("<I", 2**31 - 2)
        + data[16:20]
        + struct.pack("<I", 2**31 - 2)
        + data[24:]
    )
