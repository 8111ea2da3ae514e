"""A shard's files, written row by row and stored under names that hold their digests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.builds.layout import StoredFile
from earwitness.cache.tables import HEARD_CLIPS, heard_clips
from earwitness.cache.writing import TableWriter
from earwitness.manifest.clips import ClipResolver
from earwitness.manifest.schema import OutputFields
from earwitness.records import Reason
from earwitness.settings import Format
from earwitness.strict_json import json_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from earwitness.builds.layout import Build
    from earwitness.records import Json, Outcome, PlannedRow, Rejection

DATA_GROUP_ROWS = 4096

PROVENANCE = pa.struct(
    [
        pa.field("row", pa.int64()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("clips", HEARD_CLIPS),
        pa.field("cache_key", pa.string()),
    ]
)
"""The struct beside each answer."""


class ShardFile(Protocol):
    """A data file of a shard while it is written."""

    def add(self, rows: Sequence[tuple[PlannedRow, Outcome]]) -> None:
        """Append answered rows."""

    def store(self) -> StoredFile:
        """Finish the file and store it."""


def data_files(build: Build, shard: int, folder: Path) -> list[ShardFile]:
    """One file for each of the build's formats.

    Args:
        build: The build.
        shard: Number of the shard.
        folder: Local folder the files are written in until they are stored.
    """
    kinds: dict[Format, type[ParquetFile | JsonlFile]] = {
        Format.PARQUET: ParquetFile,
        Format.JSONL: JsonlFile,
    }
    formats = dict.fromkeys(build.plan.settings.layout.formats)
    return [kinds[fmt](build, shard, folder) for fmt in formats]


def provenance(row: int, outcome: Outcome) -> Json:
    """The struct beside an answer."""
    answer = outcome.answer
    return {
        "row": row,
        "finish_reason": answer.finish_reason if answer else None,
        "prompt_tokens": answer.prompt_tokens if answer else None,
        "completion_tokens": answer.completion_tokens if answer else None,
        "clips": heard_clips(outcome),
        "cache_key": outcome.cache_key,
    }


class _Lines:
    """JSON lines in a local file, stored when done."""

    def __init__(self, build: Build, shard: int, folder: Path, kind: str) -> None:
        self._build = build
        self._stem = f"{kind}/shard-{shard:05d}"
        self._path = folder / f"{kind}.jsonl"
        self._file = self._path.open("wb")
        self.rows = 0

    def write(self, line: Json) -> None:
        self._file.write(json_bytes(line) + b"\n")
        self.rows += 1

    def store(self) -> StoredFile:
        self._file.close()
        return _store(self._build, self._stem, self._path, self.rows)


class JsonlFile(_Lines):
    """Answered rows as JSON lines: the original fields, the answer, the provenance."""

    def __init__(self, build: Build, shard: int, folder: Path) -> None:
        super().__init__(build, shard, folder, "jsonl")
        layout = build.plan.settings.layout
        self._fields = OutputFields.from_json(build.plan.fields)
        self._answer, self._provenance = layout.answer_column, layout.provenance_column

    def add(self, rows: Sequence[tuple[PlannedRow, Outcome]]) -> None:
        """Append answered rows."""
        for row, outcome in rows:
            answer = outcome.answer.text if outcome.answer else None
            ours = {self._answer: answer, self._provenance: provenance(row.row, outcome)}
            self.write({**self._fields.complete(row.record or {}), **ours})


class RejectionsFile(_Lines):
    """Rejected rows as JSON lines: the original fields and why; itself a manifest, anywhere."""

    def __init__(self, build: Build, shard: int, folder: Path) -> None:
        super().__init__(build, shard, folder, "rejected")
        settings = build.plan.settings
        self._audio = settings.input.audio_column
        self._resolver = ClipResolver(settings.clip_root, self._audio, settings.input.max_clips)
        self._fields = OutputFields.from_json(build.plan.fields)
        self._provenance = settings.layout.provenance_column

    def add(self, rows: Sequence[tuple[PlannedRow, Rejection]]) -> None:
        """Append rejected rows."""
        for row, rejection in rows:
            why = {
                "row": row.row,
                "stage": rejection.stage,
                "reason": rejection.reason,
                "detail": rejection.detail,
                "transient": rejection.transient,
            }
            self.write({**self._manifest_fields(row, rejection), self._provenance: why})

    def _manifest_fields(self, row: PlannedRow, rejection: Rejection) -> Json:
        """The record as a manifest that lies anywhere would have it."""
        if row.record is None:
            return {}
        fields = self._fields.complete(row.record)
        refused = rejection.reason is Reason.ADDRESS_REFUSED and not row.clips
        if self._audio not in fields or refused:
            return fields  # an address that planning refused is not made one that is accepted
        return {**fields, self._audio: self._resolver.named(fields[self._audio])}


class ParquetFile:
    """Answered rows as Parquet, in the build's one schema."""

    def __init__(self, build: Build, shard: int, folder: Path) -> None:
        layout = build.plan.settings.layout
        self._build = build
        self._stem = f"data/shard-{shard:05d}"
        self._path = folder / "data.parquet"
        self._fields = OutputFields.from_json(build.plan.fields)
        self._answer, self._provenance = layout.answer_column, layout.provenance_column
        self._waiting = [self._table([])]
        self._writer = pq.ParquetWriter(self._path, self._waiting[0].schema, compression="zstd")
        self._rows = 0

    def add(self, rows: Sequence[tuple[PlannedRow, Outcome]]) -> None:
        """Append answered rows."""
        self._waiting.append(self._table(rows))
        self._rows += len(rows)
        if sum(table.num_rows for table in self._waiting) >= DATA_GROUP_ROWS:
            self._flush()

    def store(self) -> StoredFile:
        """Finish the file and store it."""
        self._flush()
        self._writer.close()
        return _store(self._build, self._stem, self._path, self._rows)

    def _flush(self) -> None:
        table = pa.concat_tables(self._waiting).combine_chunks()
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting = [table.slice(0, 0)]

    def _table(self, rows: Sequence[tuple[PlannedRow, Outcome]]) -> pa.Table:
        table = self._fields.to_arrow([self._fields.complete(row.record or {}) for row, _ in rows])
        answers = [outcome.answer.text if outcome.answer else None for _, outcome in rows]
        origins: list[Any] = [provenance(row.row, outcome) for row, outcome in rows]
        table = table.append_column(self._answer, pa.array(answers, pa.string()))
        return table.append_column(self._provenance, pa.array(origins, PROVENANCE))


class TableFile:
    """Rows of a table that later builds look into.

    Args:
        build: The build.
        shard: Number of the shard.
        folder: Local folder the file is written in until it is stored.
        table: `outcomes` or `clips`.
        schema: The table's schema.
    """

    def __init__(
        self, build: Build, shard: int, folder: Path, table: str, schema: pa.Schema
    ) -> None:
        self._build = build
        self._stem = f"{table}/shard-{shard:05d}"
        self._path = folder / f"{table}.parquet"
        self._writer = TableWriter(self._path, schema)

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        self._writer.add(rows)

    def store(self) -> StoredFile:
        """Finish the file and store it."""
        self._writer.close()
        return _store(self._build, self._stem, self._path, self._writer.rows)


def _store(build: Build, stem: str, source: Path, rows: int) -> StoredFile:
    """Store a file under a name that holds its digest: a stale attempt can never replace it."""
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = f"{stem}-{digest[:8]}{source.suffix}"
    build.store.upload(source, path)
    return StoredFile(path=path, sha256=digest, bytes=source.stat().st_size, rows=rows)
