"""Writing a table's rows as Parquet: a file in equal row groups, small tables whole."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

ROW_GROUP_ROWS = 4096
"""Rows a row group of a table's file; a row's position tells its group."""


class TableWriter:
    """Writes rows as row groups of equal size, whatever parts they come in.

    Args:
        path: Local file.
        schema: The table's schema.

    Attributes:
        rows: How many were written so far.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._waiting = schema.empty_table()
        self.rows = 0

    def add(self, part: pa.Table) -> None:
        """Append rows, in row order."""
        self.rows += part.num_rows
        self._waiting = pa.concat_tables([self._waiting, part.cast(self._schema)])
        while self._waiting.num_rows >= ROW_GROUP_ROWS:
            self._file.write_table(self._waiting.slice(0, ROW_GROUP_ROWS).combine_chunks())
            self._waiting = self._waiting.slice(ROW_GROUP_ROWS).combine_chunks()

    def close(self) -> None:
        """Finish the file."""
        if self._waiting.num_rows:
            self._file.write_table(self._waiting.combine_chunks())
        self._file.close()


def parquet_bytes(
    table: pa.Table, row_group_rows: int, compression: Literal["zstd", "none"] = "zstd"
) -> bytes:
    """A table as Parquet; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_rows, compression=compression)
    return sink.getvalue()
