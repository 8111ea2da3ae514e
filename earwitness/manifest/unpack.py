"""From a manifest's stored bytes to its lines, block by block."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

from earwitness.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MAGIC: dict[bytes, Literal["parquet", "gzip", "zstd", "utf-16"]] = {
    b"PAR1": "parquet",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_BOM = b"\xef\xbb\xbf"
_OUT_BYTES = 2**20
# zstd gives all that a block unpacks to at once: small blocks bound it (a run of 128 KiB takes
# 4 bytes, so that even a bomb stays at 16 MiB)
_ZSTD_IN_BYTES = 2**9
_MAX_LINE_BYTES = 2**34
"""A line longer than this is no record gone wrong, but a bomb or no manifest at all."""


def magic_of(start: bytes) -> Literal["parquet", "gzip", "zstd", "utf-16"] | None:
    """What a file's first four bytes say it is; None: text or anything else."""
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    return None


def unpacked(blocks: Iterator[bytes], uri: str) -> Iterator[bytes]:
    """The manifest's text, unpacked by its magic number and without a byte order mark.

    Args:
        blocks: The stored bytes; the first block holds at least the magic number.
        uri: The manifest, for messages.

    Yields:
        Blocks of text.

    Raises:
        ManifestError: It is packed but damaged, or not UTF-8 as a whole.
    """
    first = next(blocks, b"")
    kind = magic_of(first)
    if kind == "gzip":
        texts = _gunzip(_chain(first, blocks), uri)
    elif kind == "zstd":
        texts = _unzstd(_chain(first, blocks), uri)
    elif uri.lower().endswith((".gz", ".zst")) and first and first.lstrip()[:1] not in (b"{", b""):
        raise ManifestError(f"the manifest {uri} is not packed as its name says")
    else:
        texts = _chain(first, blocks)
    yield from _without_bom(texts, uri)


def split_lines(blocks: Iterable[bytes], max_line_bytes: int) -> Iterator[bytes | None]:
    """Cut text into lines, whatever their length, in constant memory.

    Args:
        blocks: The text.
        max_line_bytes: The longest line given.

    Yields:
        Each line without its end; None in place of one that is too long.

    Raises:
        ManifestError: A line is so long that it is no manifest.
    """
    rest = b""
    skipped = 0
    for block in blocks:
        # a block may be all line ends: in pieces, the list of its lines stays small
        for start in range(0, len(block), _OUT_BYTES):
            part = block[start : start + _OUT_BYTES]
            if skipped:
                end = part.find(b"\n")
                if end < 0:
                    skipped += len(part)
                    if skipped > _MAX_LINE_BYTES:
                        raise ManifestError(
                            f"the manifest has a line longer than {_MAX_LINE_BYTES:,} bytes"
                        )
                    continue
                skipped = 0
                yield None
                part = part[end + 1 :]
            lines = (rest + part).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield line if len(line) <= max_line_bytes else None
            if len(rest) > max_line_bytes:
                skipped = len(rest)
                rest = b""
    if skipped:
        yield None
    elif rest:
        yield rest


def _chain(first: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from blocks


def _without_bom(blocks: Iterator[bytes], uri: str) -> Iterator[bytes]:
    start = b""
    for block in blocks:
        start += block
        if len(start) >= len(_BOM):
            break
    if magic_of(start) == "utf-16":
        raise ManifestError(f"the manifest {uri} is UTF-16 text; it has to be UTF-8")
    yield start.removeprefix(_BOM)
    yield from blocks


def _gunzip(blocks: Iterator[bytes], uri: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    started = False
    try:
        for block in blocks:
            data = block
            while data:
                if unpacker.eof:
                    # another member follows, or the zeros that tapes are filled up with
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    unpacker, started = zlib.decompressobj(wbits=31), False
                text = unpacker.decompress(data, _OUT_BYTES)
                started = True
                data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                if text:
                    yield text
    except zlib.error as error:
        raise ManifestError(f"the manifest {uri} is damaged gzip: {error}") from error
    if started and not unpacker.eof:
        raise ManifestError(f"the manifest {uri} is cut short: its gzip stream has no end")


def _unzstd(blocks: Iterator[bytes], uri: str) -> Iterator[bytes]:
    import zstandard

    frames = zstandard.ZstdDecompressor()
    unpacker = frames.decompressobj()
    started = False
    try:
        for block in blocks:
            for position in range(0, len(block), _ZSTD_IN_BYTES):
                data = block[position : position + _ZSTD_IN_BYTES]
                while data:
                    if unpacker.eof:
                        unpacker = frames.decompressobj()
                    text = unpacker.decompress(data)
                    started = True
                    data = unpacker.unused_data if unpacker.eof else b""
                    if text:
                        yield text
    except zstandard.ZstdError as error:
        raise ManifestError(f"the manifest {uri} is damaged zstd: {error}") from error
    if started and not unpacker.eof:
        raise ManifestError(f"the manifest {uri} is cut short: its zstd stream has no end")
