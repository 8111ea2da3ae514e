"""Manifests as streams of lines: any size, any line length, constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

from earwitness.addresses import split_protocol
from earwitness.errors import ManifestError
from earwitness.manifest.kinds import check_kind
from earwitness.manifest.source import READ_BYTES, ManifestSource, RawLine, current_stamp, readable
from earwitness.manifest.unpack import magic_of, split_lines, unpacked
from earwitness.records import Reason, Rejection, Stage
from earwitness.storage_calls import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.manifest.source import ByteStream

_OPEN_OPTIONS: dict[str, dict[str, Any]] = {
    # one request for the whole object, read as it comes
    "http": {"block_size": 0},
    "https": {"block_size": 0},
    # s3fs would read 50 MiB ahead
    "s3": {"block_size": 8 * READ_BYTES},
    "s3a": {"block_size": 8 * READ_BYTES},
}
_START_BYTES = 2**18
"""Read before anything is decided: a whole block of a packed file is in it."""
_JUDGED_BYTES = 2**16
_PACKED = {"gzip": "a gzip file", "zstd": "a Zstandard file"}
_MAX_BLANK_LINES = 10_000_000
"""So many empty lines in a row are no manifest: they unpack from next to nothing, and take time."""


class Joined:
    """A file whose first bytes were read already (streams cannot go back).

    Args:
        start: The bytes read.
        file: The rest.
    """

    def __init__(self, start: bytes, file: ByteStream) -> None:
        self._start = start
        self._file = file

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        if self._start:
            start, self._start = self._start, b""
            return start
        return self._file.read(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonLinesSource(ManifestSource):
    """A manifest of JSON lines, packed or plain.

    Args:
        uri: Where it is.
        file: Opened at its start.
        stamp: Its stamp.
        size_bytes: Its size.
        max_line_bytes: Longer lines are skipped through and rejected.
    """

    def __init__(
        self, uri: str, file: ByteStream, stamp: str | None, size_bytes: int, *, max_line_bytes: int
    ) -> None:
        super().__init__(uri, file, stamp, size_bytes)
        self._max_line_bytes = max_line_bytes

    def _lines(self) -> Iterator[RawLine]:
        limit = self._max_line_bytes
        too_long = Rejection(
            Stage.PLAN, Reason.LINE_TOO_LONG, f"the line is longer than {limit} bytes"
        )
        blank = 0
        lines = split_lines(unpacked(self._blocks(), self.uri), limit)
        for number, line in enumerate(lines, 1):
            self.lines = number
            if line is None:
                self.rows += 1
                yield RawLine(self.rows - 1, number, None, None, too_long)
                continue
            text = line.rstrip()
            if not text:
                blank += 1
                if blank > _MAX_BLANK_LINES:
                    raise ManifestError(
                        f"the manifest {self.uri} has more than {_MAX_BLANK_LINES:,} empty lines "
                        "in a row"
                    )
                continue
            blank = 0
            self.rows += 1
            yield RawLine(self.rows - 1, number, text)


def open_manifest(uri: str, *, max_line_bytes: int) -> ManifestSource:
    """Open a manifest, whatever its form: JSON lines, plain or packed (.gz, .zst), or Parquet.

    Args:
        uri: Path or URL.
        max_line_bytes: Longer lines, or rows of Parquet, become rejections.

    Returns:
        Its lines as a stream; close it, or use it in a `with`.

    Raises:
        ManifestError: It is not there, may not be read, or is nothing of these.
        StorageUnavailableError: Storage does not answer now.
        CredentialsError: Storage refused the credentials.
    """
    with readable(uri):
        stamp, size_bytes = current_stamp(uri)
        file = open_file(uri, **_OPEN_OPTIONS.get(split_protocol(uri), {}))
    try:
        with readable(uri):
            start = _read_start(file)
        if magic_of(start) != "parquet":
            _check_start(start, uri)
        if magic_of(start) == "parquet" or uri.lower().endswith((".parquet", ".pq")):
            from earwitness.manifest.parquet import ParquetSource

            joined = Joined(start, file)
            return ParquetSource(uri, joined, stamp, size_bytes, max_row_bytes=max_line_bytes)
        return JsonLinesSource(
            uri, Joined(start, file), stamp, size_bytes, max_line_bytes=max_line_bytes
        )
    except BaseException:
        file.close()
        raise


def _read_start(file: BinaryIO) -> bytes:
    start = bytearray()
    while len(start) < _START_BYTES:
        more = file.read(_START_BYTES - len(start))
        if not more:
            break
        start += more
    return bytes(start)


def _check_start(start: bytes, uri: str) -> None:
    """Refuse another kind of file, also inside a packed one."""
    packed = _PACKED.get(magic_of(start) or "")
    if packed is None:
        if start.strip():
            check_kind(start, uri)
        elif len(start) < _START_BYTES:
            raise ManifestError(f"the manifest {uri} holds no records: it is empty")
        return
    text = b""
    try:
        for block in unpacked(iter([start]), uri):
            # a block may be 16 MiB of empty lines
            text += block[:_JUDGED_BYTES]
            if len(text) >= _JUDGED_BYTES:
                break
    except ManifestError:
        if len(start) < _START_BYTES:
            raise
    if text:
        check_kind(text, uri, packed=packed)
