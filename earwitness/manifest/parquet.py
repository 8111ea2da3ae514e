"""Parquet manifests as streams of records."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.addresses import local_path, split_protocol
from earwitness.errors import ManifestError
from earwitness.manifest.columns import from_arrow_column
from earwitness.manifest.reader import ManifestSource, RawLine
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH_ROWS = 1024
_BUFFER_BYTES = 2**20


class ParquetSource(ManifestSource):
    """A Parquet manifest. Its bytes are read through once for their digest before any record.

    A remote one goes to a temporary file: Parquet is read from its end, and in pieces.

    Args:
        uri: Where it is.
        file: Opened at its start.
        stamp: Its stamp.
        size_bytes: Its size.

    Raises:
        ManifestError: It is not a whole Parquet file.
        StorageUnavailableError: Storage does not answer now.
    """

    def __init__(self, uri: str, file: Any, stamp: str | None, size_bytes: int) -> None:
        super().__init__(uri, file, stamp, size_bytes)
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
        except (pa.ArrowException, OSError) as error:
            local.close()
            raise ManifestError(f"the manifest {uri} is no whole Parquet file: {error}") from error
        self.schema = self._parquet.schema_arrow
        names = self.schema.names
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ManifestError(f"the manifest {uri} has columns of one name: {', '.join(twice)}")

    def _lines(self) -> Iterator[RawLine]:
        try:
            for batch in self._parquet.iter_batches(batch_size=BATCH_ROWS):
                yield from self._batch_lines(batch)
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise ManifestError(f"the manifest {self.uri} is damaged Parquet: {error}") from error

    def _batch_lines(self, batch: pa.RecordBatch) -> Iterator[RawLine]:
        try:
            records = _records(batch)
        except UnicodeDecodeError:
            if batch.num_rows > 1:
                # only the row at fault is rejected
                for position in range(batch.num_rows):
                    yield from self._batch_lines(batch.slice(position, 1))
                return
            rejection = Rejection(
                Stage.PLAN, Reason.BAD_ENCODING, f"field {_bad_text(batch)!r} holds text not UTF-8"
            )
            self.rows += 1
            yield RawLine(self.rows - 1, self.rows, None, None, rejection)
            return
        for record in records:
            self.rows += 1
            yield RawLine(self.rows - 1, self.rows, None, record)


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    names = batch.schema.names
    columns = [from_arrow_column(column) for column in batch.columns]
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _bad_text(batch: pa.RecordBatch) -> str:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            from_arrow_column(column)
        except UnicodeDecodeError:
            return str(name)
    return ""
