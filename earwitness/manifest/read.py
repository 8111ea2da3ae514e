"""Manifests as streams of lines: any size, any line length, constant memory."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, Self

from earwitness.access import WEB
from earwitness.addresses import local_path, split_protocol
from earwitness.errors import (
    EarwitnessError,
    ManifestError,
    StorageUnavailableError,
    close_name,
    told_os_error,
)
from earwitness.manifest.kinds import check_kind, folder_kind
from earwitness.manifest.unpack import magic_of, split_lines, unpacked
from earwitness.records import Reason, Rejection, Stage
from earwitness.storage_calls import filesystem, open_file, sure_stamp
from earwitness.storage_errors import translate_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from earwitness.records import Json


READ_BYTES = 2**20
_MISSING_STATUS = frozenset({404, 410})
_REFUSED_STATUS = frozenset({401, 403})
_PASSING_STATUS = frozenset({408, 425, 429})


class ByteStream(Protocol):
    """What is asked of a file: to be read once."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class RawLine(NamedTuple):
    """One line of a manifest, unjudged. Exactly one of the last three is set.

    Attributes:
        row: Position among the records, from 0.
        line_number: Of the text file, from 1 and with blank lines; for Parquet `row` + 1.
        text: The line without its end, where the manifest is text.
        record: The record, where the manifest is Parquet.
        rejection: Why the line could not even be read.
    """

    row: int
    line_number: int
    text: bytes | None
    record: Json | None = None
    rejection: Rejection | None = None


class ManifestSource:
    """An opened manifest, read once from start to end.

    Attributes:
        uri: Where it is.
        stamp: Size and version when it was opened, None where storage tells none.
        size_bytes: As stored, 0 where unknown.
        read_bytes: How much of that was read so far, for progress bars.
        rows: Records given so far.
        lines: Lines read so far, with empty ones; 0 where there are none (Parquet).
        schema: The manifest's own Arrow schema (Parquet), else None.
        digest: Hex SHA-256 of the stored bytes; empty until all were read.
    """

    schema: pa.Schema | None = None

    def __init__(self, uri: str, file: ByteStream, stamp: str | None, size_bytes: int) -> None:
        self.uri = uri
        self.stamp = stamp
        self.size_bytes = size_bytes
        self.read_bytes = 0
        self.rows = 0
        self.lines = 0
        self.digest = ""
        self._file = file
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __iter__(self) -> Iterator[RawLine]:
        """The manifest's lines, in order.

        Raises:
            ManifestError: It is damaged, empty, or changed while it was read.
            StorageUnavailableError: Storage does not answer now.
        """
        yield from self._lines()
        if not self.rows:
            raise ManifestError(f"the manifest {self.uri} holds no records")
        with readable(self.uri):
            now, _ = current_stamp(self.uri)
        if now != self.stamp:
            raise ManifestError(f"the manifest {self.uri} changed while it was read: start again")
        self.digest = self._sha256.hexdigest()

    def _lines(self) -> Iterator[RawLine]:
        raise NotImplementedError

    def _blocks(self) -> Iterator[bytes]:
        """The stored bytes, hashed as they are read."""
        while True:
            with readable(self.uri):
                block = self._file.read(READ_BYTES)
            if not block:
                return
            self._sha256.update(block)
            self.read_bytes += len(block)
            yield block


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """Raise our own errors for what storage raises about the manifest inside the block."""
    try:
        yield
    except EarwitnessError:
        raise
    except Exception as error:
        raise _manifest_error(error, uri) from error


def _manifest_error(error: Exception, uri: str) -> EarwitnessError:
    # fsspec says "not found" of any web server's failure; its cause knows better
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        if status >= 500 or status in _PASSING_STATUS:  # noqa: PLR2004 - HTTP's own classes
            return StorageUnavailableError(f"{uri}: the server answered {status}")
        if status in _MISSING_STATUS:
            return ManifestError(f"there is no manifest at {uri} (the server answered {status})")
        hint = "; it may need a signed URL" if status in _REFUSED_STATUS else ""
        return ManifestError(
            f"the manifest {uri} cannot be read: the server answered {status}{hint}"
        )
    ours = translate_error(cause, uri)
    if ours is not None:
        return ours
    if isinstance(error, FileNotFoundError | IsADirectoryError):
        return _not_a_file(uri)
    if isinstance(error, OSError):
        why = told_os_error(error, uri)
    else:
        why = f"{type(error).__name__}: {error}"
    return ManifestError(f"the manifest {uri} cannot be read: {why}")


def _not_a_file(uri: str) -> ManifestError:
    """What is there in place of a file: a folder, a file of nearly the same name, or nothing."""
    names: list[str] = []
    if split_protocol(uri) not in WEB:
        fs, path = filesystem(uri)
        with suppress(Exception):  # whatever the listing meets: the file is missing all the same
            names = [name.rpartition("/")[2] for name in fs.ls(path, detail=False)]
    if names or (split_protocol(uri) == "file" and local_path(uri).is_dir()):
        return ManifestError(f"the manifest {uri} cannot be read: {folder_kind(names)}")
    close = close_name(local_path(uri)) if split_protocol(uri) == "file" else ""
    return ManifestError(f"there is no manifest at {uri}{close}")


def current_stamp(uri: str) -> tuple[str | None, int]:
    """A manifest's stamp now, None where storage tells no version, and its size in bytes."""
    stamp = sure_stamp(uri)
    return (str(stamp) if stamp.version else None), stamp.size_bytes


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
