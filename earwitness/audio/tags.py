"""Tags that a program put before or behind a clip's own bytes.

An ID3v2 or APE tag belongs before MP3 frames, but programs write it before FLAC, WAV and others as
well. Such a clip is read from where its container begins, as if there were no tag.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from earwitness.audio.mpeg import sound_end, tag_length

if TYPE_CHECKING:
    from mmap import mmap

    Data = bytes | mmap

_PADDING_BYTES = 2**16
"""So many zeros may stand between a tag and what follows it."""
_MAGIC = (
    *((0, name) for name in (b"fLaC", b"OggS", b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff")),
    *((0, name) for name in (b"FORM", b".snd", b"caff", b"wvpk", b"TTA1", b"DSD ", b"FLV\x01")),
    *((0, name) for name in (b"#!AMR", b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11", b"NIST_1A")),
    *((0, name) for name in (b"Creative Voice", b"MATLAB 5.0", b"MAC ", b"MPCK", b"MP+")),
    *((4, name) for name in (b"ftyp", b"moov", b"mdat")),
)
"""How the containers begin that are no stream of frames; those are looked at with their tags."""


class Behind:
    """The bytes of a file behind its first tags, with what is used here of a map of a file.

    Args:
        data: The whole file.
        start: Where the part begins that is seen.
    """

    def __init__(self, data: mmap, start: int) -> None:
        self._data = data
        self._start = start

    def __len__(self) -> int:
        return len(self._data) - self._start

    def __getitem__(self, wanted: int | slice) -> int | bytes:
        if isinstance(wanted, int):
            return self._data[self._start + wanted]
        first, last, _ = wanted.indices(len(self))
        return self._data[self._start + first : self._start + max(first, last)]

    def find(self, wanted: bytes, at: int = 0, end: int | None = None) -> int:
        """Where some bytes stand between two places; -1: nowhere."""
        last = len(self) if end is None else end
        found = self._data.find(wanted, self._start + at, self._start + last)
        return found - self._start if found >= 0 else -1

    def rfind(self, wanted: bytes) -> int:
        """Where some bytes stand for the last time; -1: nowhere."""
        found = self._data.rfind(wanted, self._start)
        return found - self._start if found >= 0 else -1


def container_start(data: mmap) -> int:
    """Where a clip's container begins behind its first tags.

    Returns:
        0 where no tag stands first, or where no container begins behind it.
    """
    at = 0
    while length := _leading_tag(data, at):
        at += length
    if not at:
        return 0
    padding = data[at : at + _PADDING_BYTES]
    for start in (at, at + len(padding) - len(padding.lstrip(b"\0"))):
        if any(
            data[start + place : start + place + len(magic)] == magic for place, magic in _MAGIC
        ):
            return start
    return 0


def foreign_bytes(data: Data, start: int, end: int | None = None) -> int:
    """How many bytes between two places are neither tags nor zeros around other bytes.

    Args:
        data: The whole file.
        start: Where one looks from.
        end: Up to where; None: to the end of the file.
    """
    end = min(len(data) if end is None else end, sound_end(data))
    while length := tag_length(data, start) if start < end else 0:
        start += length
    return len(data[start:end].strip(b"\0"))


def _leading_tag(data: mmap, at: int) -> int:
    return tag_length(data, at) if data[at : at + 8].startswith((b"ID3", b"APETAGEX")) else 0
