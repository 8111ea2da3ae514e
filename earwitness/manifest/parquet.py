"""Parquet manifests as streams of records."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.addresses import local_path, split_protocol
from earwitness.errors import ManifestError
from earwitness.manifest.columns import decoded_bytes, from_arrow_column
from earwitness.manifest.read import ManifestSource, RawLine
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_ROWS = 256
"""Few: a value of megabytes that is stored once may stand in every row."""
_BUFFER_BYTES = 2**20


class ParquetSource(ManifestSource):
    """A Parquet manifest. Its bytes are read through once for their digest before any record.

    A remote one goes to a temporary file: Parquet is read from its end, and in pieces.

    Args:
        uri: Where it is.
        file: Opened at its start.
        stamp: Its stamp.
        size_bytes: Its size.
        max_row_bytes: Longer rows are rejected unread.

    Raises:
        ManifestError: It is not a whole Parquet file.
        StorageUnavailableError: Storage does not answer now.
    """

    def __init__(
        self, uri: str, file: Any, stamp: str | None, size_bytes: int, *, max_row_bytes: int
    ) -> None:
        super().__init__(uri, file, stamp, size_bytes)
        self._max_row_bytes = max_row_bytes
        local: BinaryIO
        if split_protocol(uri) == "file":
            local = local_path(uri).open("rb")
            for _ in self._blocks():
                pass
        else:
            local = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the source
            for block in self._blocks():
                local.write(block)
            local.seek(0)
        file.close()
        self._file = local
        try:
            self._parquet = pq.ParquetFile(local, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            self.schema = self._parquet.schema_arrow
            names = self.schema.names  # a damaged one is not UTF-8
        except (pa.ArrowException, OSError, ValueError) as error:
            local.close()
            raise ManifestError(
                f"the manifest {uri} is not a whole Parquet file: {_one_line(error)}"
            ) from error
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ManifestError(
                f"the manifest {uri} has several columns of the same name: {', '.join(twice)}"
            )

    def _lines(self) -> Iterator[RawLine]:
        try:
            for batch in self._parquet.iter_batches(batch_size=BATCH_ROWS):
                yield from self._batch_lines(batch)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise ManifestError(
                f"the manifest {self.uri} is damaged Parquet: {_one_line(error)}"
            ) from error

    def _batch_lines(self, batch: pa.RecordBatch) -> Iterator[RawLine]:
        rejection = None
        if decoded_bytes(batch.columns) > self._max_row_bytes:
            detail = f"the row is longer than {self._max_row_bytes} bytes"
            rejection = Rejection(Stage.PLAN, Reason.LINE_TOO_LONG, detail)
        else:
            try:
                records = _records(batch)
            except (ValueError, OverflowError):
                detail = (
                    f"field {_bad_field(batch)!r} holds text that is not UTF-8, "
                    "or a value that cannot be read"
                )
                rejection = Rejection(Stage.PLAN, Reason.BAD_ENCODING, detail)
        if rejection is None:
            for record in records:
                self.rows += 1
                yield RawLine(self.rows - 1, self.rows, None, record)
        elif batch.num_rows > 1:
            # only the row at fault is rejected, and memory holds no more than it has to
            half = batch.num_rows // 2
            yield from self._batch_lines(batch.slice(0, half))
            yield from self._batch_lines(batch.slice(half))
        else:
            self.rows += 1
            yield RawLine(self.rows - 1, self.rows, None, None, rejection)


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    names = batch.schema.names
    columns = [from_arrow_column(column) for column in batch.columns]
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _bad_field(batch: pa.RecordBatch) -> str:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            from_arrow_column(column)
        except (ValueError, OverflowError):
            return str(name)[:80]
    return ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
