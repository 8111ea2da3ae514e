"""What a file's first bytes say it is."""

from __future__ import annotations

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
        return "zero bytes only"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document"
    if not _is_text(head):
        return "a file of an unknown kind"
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
