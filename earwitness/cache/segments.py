"""One store class for both tables: immutable Parquet segments and a sorted index over them.

    segments/<name>.parquet     key (32 bytes) and the table's own columns, one segment a shard
    index-<digest>.parquet      (first 8 bytes of key, segment, position), sorted
    index.json                  which index is current and which segments it covers

A segment the index does not cover yet is read directly, so that a lost or late index costs time,
never an answer. Where a key is in several segments, the newest segment's row counts: segment names
begin with the time their build was planned.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from earwitness.storage import Store

_ROW_GROUP_ROWS = 4096
_INDEX_GROUP_ROWS = 1 << 20
_PREFIX_BYTES = 8


@dataclass(slots=True)
class _Pointer:
    """`index.json`: the current index file, the one before it, the segments covered in order."""

    index: str = ""
    previous: str = ""
    segments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Keys:
    """Sorted key prefixes and where each key is: `segments[segment[i]]`, row `position[i]`."""

    prefix: NDArray[np.uint64]
    segment: NDArray[np.int32]
    position: NDArray[np.int32]
    segments: list[str]

    def locate(self, wanted: NDArray[np.uint64]) -> list[tuple[int, str, int]]:
        """(index into wanted, segment name, position) for every possible match."""
        first = np.searchsorted(self.prefix, wanted, side="left")
        last = np.searchsorted(self.prefix, wanted, side="right")
        return [
            (int(i), self.segments[self.segment[at]], int(self.position[at]))
            for i in np.nonzero(last > first)[0]
            for at in range(first[i], last[i])
        ]


class SegmentCache:
    """A table from 32-byte keys to rows, on any storage, shared by all builds of an output.

    Args:
        store: Folder of this table.
        columns: The table's columns besides `key`.
    """

    def __init__(self, store: Store, columns: pa.Schema) -> None:
        self._store = store
        self.schema = pa.schema([pa.field("key", pa.binary(32)), *columns])
        self._known: dict[str, _Keys] = {}

    @contextmanager
    def writer(self, name: str) -> Iterator[SegmentWriter]:
        """Keep a shard's rows as one immutable segment, stored when the block ends well.

        Args:
            name: `<planned at>-<build id>.shard-00000`, the same over retries of the shard.
        """
        with scratch_folder() as folder:
            path = folder / "segment.parquet"
            with SegmentWriter(path, self.schema) as writer:
                yield writer
            if writer.rows:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self._store.upload(path, f"segments/{name}-{digest[:8]}.parquet")

    def write(self, name: str, rows: pa.Table) -> None:
        """Keep rows as one immutable segment; none where there are no rows.

        Args:
            name: As for `writer`.
            rows: Rows in the cache's schema, in row order.
        """
        with self.writer(name) as segment:
            segment.add(rows)

    def find(
        self,
        keys: Sequence[bytes],
        near: str = "",
        final: Callable[[dict[str, Any]], bool] = lambda _: True,
    ) -> dict[bytes, dict[str, Any]]:
        """Rows for as many of the keys as are known.

        Args:
            keys: 32-byte keys.
            near: Part of segment names to look at first (`.shard-00003`): a nightly build finds
                nearly everything where the last one's same shard put it, without the index.
            final: Whether a row found there may be taken without looking for a newer one.

        Returns:
            key → row (column → value), the newest row for each.
        """
        missing = dict.fromkeys(keys)
        found: dict[bytes, dict[str, Any]] = {}
        if not missing:
            return found
        segments = self.segments()
        if near:
            close = [name for name in segments if f"{near}-" in name][-2:]
            self._collect([self._segment_keys(name) for name in close], missing, found)
            unsure = [key for key, row in found.items() if not final(row)]
            for key in unsure:
                del found[key]
                missing[key] = None
        if missing:
            self._collect(self._all_keys(segments), missing, found)
        return found

    def _all_keys(self, segments: list[str]) -> list[_Keys]:
        pointer = self._pointer()
        indexed = [self._index_keys(pointer)] if pointer.index else []
        covered = set(pointer.segments)
        return [*indexed, *(self._segment_keys(name) for name in segments if name not in covered)]

    def segments(self) -> list[str]:
        """Names of all segments, oldest first."""
        return [
            path.removeprefix("segments/").removesuffix(".parquet")
            for path in self._store.sizes("segments")
            if path.endswith(".parquet")
        ]

    def merge(self) -> int:
        """Bring segments that the index does not cover yet into a new index.

        Returns:
            How many segments were added. Two builds merging at once is fine: what the later
            pointer does not cover is read directly until the next merge.
        """
        pointer = self._pointer()
        covered = set(pointer.segments)
        fresh = [name for name in self.segments() if name not in covered]
        if not fresh:
            return 0
        parts = [self._index_keys(pointer)] if pointer.index else []
        segments = [*pointer.segments, *fresh]
        numbers = {name: number for number, name in enumerate(segments)}
        prefix = [part.prefix for part in parts]
        segment = [part.segment for part in parts]
        position = [part.position for part in parts]
        for name in fresh:
            keys = self._segment_keys(name)
            prefix.append(keys.prefix)
            segment.append(np.full(len(keys.prefix), numbers[name], np.int32))
            position.append(keys.position)
        all_prefix = np.concatenate(prefix)
        order = np.argsort(all_prefix, kind="stable")
        table = pa.table(
            {
                "prefix": pa.array(all_prefix[order]),
                "segment": pa.array(np.concatenate(segment)[order]),
                "position": pa.array(np.concatenate(position)[order]),
            }
        )
        data = parquet_bytes(table, _INDEX_GROUP_ROWS, compression="none")
        index = f"index-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        self._store.write_bytes(index, data)
        self._write_pointer(_Pointer(index, pointer.index, segments))
        if pointer.previous not in {"", index, pointer.index}:
            self._store.delete([pointer.previous])
        return len(fresh)

    def _pointer(self) -> _Pointer:
        try:
            known = json.loads(self._store.read_bytes("index.json"))
        except FileNotFoundError:
            return _Pointer()
        return _Pointer(known["index"], known["previous"], known["segments"])

    def _write_pointer(self, pointer: _Pointer) -> None:
        known = {
            "index": pointer.index,
            "previous": pointer.previous,
            "segments": pointer.segments,
        }
        self._store.write_bytes("index.json", json.dumps(known, indent=1).encode())

    def _index_keys(self, pointer: _Pointer) -> _Keys:
        known = self._known.get(pointer.index)
        if known is None:
            with self._store.open(pointer.index) as file:
                table = pq.read_table(file)
            known = _Keys(
                table["prefix"].to_numpy(),
                table["segment"].to_numpy(),
                table["position"].to_numpy(),
                pointer.segments,
            )
            self._known = {
                name: keys for name, keys in self._known.items() if not name.startswith("index-")
            }
            self._known[pointer.index] = known
        return known

    def _segment_keys(self, name: str) -> _Keys:
        known = self._known.get(name)
        if known is None:
            with self._store.open(f"segments/{name}.parquet") as file:
                column = pq.read_table(file, columns=["key"])["key"]
            prefix = prefixes(cast("list[bytes]", column.to_pylist()))
            order = np.argsort(prefix, kind="stable").astype(np.int32)
            known = _Keys(prefix[order], np.zeros(len(order), np.int32), order, [name])
            self._known[name] = known
        return known

    def _collect(
        self,
        sources: Iterable[_Keys],
        missing: dict[bytes, None],
        found: dict[bytes, dict[str, Any]],
    ) -> None:
        """Move every key the sources know from `missing` to `found`."""
        wanted = list(missing)
        wanted_prefix = prefixes(wanted)
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for source in sources:
            for at, segment, position in source.locate(wanted_prefix):
                places[segment].append((at, position))
        for segment in sorted(places, reverse=True):  # newest first: the first hit counts
            todo = [(at, position) for at, position in places[segment] if wanted[at] in missing]
            for at, row in self._read(segment, todo):
                if row["key"] == wanted[at]:
                    missing.pop(wanted[at], None)
                    found.setdefault(wanted[at], row)

    def _read(
        self, segment: str, places: list[tuple[int, int]]
    ) -> Iterable[tuple[int, dict[str, Any]]]:
        """Rows of a segment at the given positions; only the row groups they are in are read."""
        if not places:
            return []
        with self._store.open(f"segments/{segment}.parquet") as file:
            parquet = pq.ParquetFile(file)
            groups = sorted({position // _ROW_GROUP_ROWS for _, position in places})
            table = parquet.read_row_groups(groups)
        start = {group: number * _ROW_GROUP_ROWS for number, group in enumerate(groups)}
        offsets = [start[at // _ROW_GROUP_ROWS] + at % _ROW_GROUP_ROWS for _, at in places]
        rows = table.take(pa.array(offsets, pa.int64())).to_pylist()
        return [(at, row) for (at, _), row in zip(places, rows, strict=True)]


class SegmentWriter:
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
        while self._waiting.num_rows >= _ROW_GROUP_ROWS:
            self._file.write_table(self._waiting.slice(0, _ROW_GROUP_ROWS).combine_chunks())
            self._waiting = self._waiting.slice(_ROW_GROUP_ROWS).combine_chunks()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting.num_rows:
            self._file.write_table(self._waiting.combine_chunks())
        self._file.close()


def prefixes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """The first eight bytes of each key as a big-endian number, shape (len(keys),)."""
    joined = b"".join(key[:_PREFIX_BYTES] for key in keys)
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64)


def parquet_bytes(
    table: pa.Table, row_group_rows: int, compression: Literal["zstd", "none"] = "zstd"
) -> bytes:
    """A table as Parquet; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=row_group_rows, compression=compression)
    return sink.getvalue()
