"""What a file's first bytes say it is, and whether all it announces is there. No decoding."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_AUDIO_MAGIC = (
    (0, b"fLaC", "a FLAC file"),
    (0, b"OggS", "an Ogg file"),
    (0, b"ID3", "an MP3 file"),
    (8, b"WAVE", "a WAV file"),
    (8, b"AIFF", "an AIFF file"),
    (8, b"AIFC", "an AIFF file"),
    (4, b"ftyp", "an MP4 file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"caff", "a CAF file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "a WMA file"),
)
_OTHER_MAGIC = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x7fELF", "a program"),
    (0, b"#EXTM3U", "a playlist"),
)

_SLACK_BYTES = 64
"""Some writers count their own header (44 bytes in WAV) into the length they announce."""
_UNKNOWN_LENGTH = 0x7FFFF000
"""Writers to a pipe announce this (sox) or 0xFFFFFFFF (ffmpeg): the length was not known."""
_UNKNOWN_LENGTH_64 = 2**62
_MAX_CHUNKS = 10_000
"""A file in more pieces than this, most of them empty, is not searched to its end."""
_OGG_PAGE_MAX = 27 + 255 + 255 * 255


def audio_kind(head: bytes) -> str | None:
    """The audio container the first bytes announce ("a FLAC file"), or None."""
    return _by_magic(head, _AUDIO_MAGIC)


def looks_like(head: bytes) -> str:
    """What a file that is not audio seems to be.

    Args:
        head: Its first bytes, 512 or more where there are as many.

    Returns:
        A noun phrase for a message: "an HTML page", "a ZIP archive", "text", ….
    """
    known = _by_magic(head, _OTHER_MAGIC)
    if known:
        return known
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document"
    if not _is_text(head):
        return "no known kind of file"
    return "a JSON document" if start.startswith((b"{", b"[")) else "text"


def _by_magic(head: bytes, table: tuple[tuple[int, bytes, str], ...]) -> str | None:
    for offset, magic, name in table:
        if head[offset : offset + len(magic)] == magic:
            return name
    return None


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    try:
        # the last few bytes may be half a character
        head[:-4].decode() if len(head) > 4 else head.decode()  # noqa: PLR2004 - UTF-8's longest
    except UnicodeDecodeError:
        return False
    return True


def missing_bytes(path: Path) -> int:
    """How many bytes a container's own header announces beyond the end of the file.

    Decoders read a cut WAV, AIFF, MP4 or Ogg file (and some others) up to its end without a word;
    the announced length tells. Other containers (FLAC, MP3, WebM) announce a duration, which
    decoding checks.

    Args:
        path: The clip.

    Returns:
        0 when all is there, or when this container announces no length in bytes.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        end = _announced_end(file, head, size)
    missing = end - size
    return missing if missing > _SLACK_BYTES or (missing > 0 and head[:4] == b"OggS") else 0


def _announced_end(file: BinaryIO, head: bytes, size: int) -> int:
    """Where the file should end by its own account; 0 when it gives none."""
    if head[4:8] == b"ftyp":
        return _boxes_end(file, size)
    if head[:4] == b"OggS":
        return _last_page_end(file, size)
    reader = _ENDS.get(head[:4])
    return reader(file, head) if reader else 0


def _riff_end(file: BinaryIO, head: bytes) -> int:
    if head[8:12] == b"WAVE":
        return _chunk_end(file, b"data", "little")
    length = int.from_bytes(head[4:8], "little") if head[8:12] == b"AVI " else 0
    return 8 + length if 0 < length < _UNKNOWN_LENGTH else 0


def _aiff_end(file: BinaryIO, head: bytes) -> int:
    return _chunk_end(file, b"SSND", "big") if head[8:12] in {b"AIFF", b"AIFC"} else 0


def _au_end(_file: BinaryIO, head: bytes) -> int:
    length = int.from_bytes(head[8:12], "big")
    return int.from_bytes(head[4:8], "big") + length if length < _UNKNOWN_LENGTH else 0


def _w64_end(file: BinaryIO, _head: bytes) -> int:
    """Sony Wave64: like RIFF, with 16 bytes of name and 8 of length."""
    file.seek(16)
    length = int.from_bytes(file.read(8), "little")
    return length if length < _UNKNOWN_LENGTH_64 else 0


def _chunk_end(file: BinaryIO, wanted: bytes, order: Literal["little", "big"]) -> int:
    """Where the chunk that holds the samples should end; 0 when not announced."""
    offset = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8:  # noqa: PLR2004 - four letters and a length
            return 0
        length = int.from_bytes(head[4:], order)
        if head[:4] == wanted:
            return 0 if length >= _UNKNOWN_LENGTH else offset + 8 + length
        offset += 8 + length + length % 2
    return 0


def _rf64_end(file: BinaryIO, _head: bytes) -> int:
    """Where an RF64 file should end: its first chunk, `ds64`, says so in 64 bits."""
    file.seek(12)
    head = file.read(16)
    length = int.from_bytes(head[8:16], "little")
    known = head[:4] == b"ds64" and 0 < length < _UNKNOWN_LENGTH_64
    return 8 + length if known else 0


def _caf_end(file: BinaryIO, _head: bytes) -> int:
    size = os.fstat(file.fileno()).st_size
    offset = 8
    for _ in range(_MAX_CHUNKS):
        file.seek(offset)
        head = file.read(12)
        if len(head) < 12:  # noqa: PLR2004 - four letters and a length
            return 0
        length = int.from_bytes(head[4:], "big")
        # samples may say -1: up to the end of the file
        if length >= _UNKNOWN_LENGTH_64:
            return 0
        offset += 12 + length
        if head[:4] == b"data" or offset > size:
            return offset
    return 0


_ENDS: dict[bytes, Callable[[BinaryIO, bytes], int]] = {
    b"RIFF": _riff_end,
    b"RF64": _rf64_end,
    b"riff": _w64_end,
    b"FORM": _aiff_end,
    b".snd": _au_end,
    b"caff": _caf_end,
}


def _boxes_end(file: BinaryIO, size: int) -> int:
    return max(_box_ends(file, size), default=0)


def _box_ends(file: BinaryIO, size: int) -> Iterator[int]:
    """Where each of an MP4's outermost boxes should end."""
    offset = 0
    for _ in range(_MAX_CHUNKS):
        if offset >= size:
            return
        file.seek(offset)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # noqa: PLR2004 - 0 means "up to the end", anything else is broken
            return
        offset += length
        yield offset


def _last_page_end(file: BinaryIO, size: int) -> int:
    """Where the last Ogg page that begins in the file should end.

    An Ogg stream cut between two pages cannot be told from a live recording; one cut within a
    page can.
    """
    start = max(0, size - _OGG_PAGE_MAX)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return 0
    segments = tail[at + 26] if len(tail) > at + 26 else 255
    table = tail[at + 27 : at + 27 + segments]
    if len(table) < segments:
        return size + segments - len(table)
    return start + at + 27 + segments + sum(table)


def mp3_announces_length(path: Path) -> bool:
    """True when an MP3 carries a Xing, Info or VBRI header; else its length is a guess."""
    with path.open("rb") as file:
        head = file.read(10)
        skip = 0
        if head[:3] == b"ID3":
            # "syncsafe": seven bits a byte (ID3v2.4 section 3.1)
            skip = 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(skip)
        first_frame = file.read(4096)
    return any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))
