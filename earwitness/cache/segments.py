"""One store class for both tables: immutable Parquet segments and a sorted index over them.

    segments/<name>.parquet     key (32 bytes) and the table's own columns, one segment a shard
    index-<digest>.parquet      (first 8 bytes of key, segment, position), sorted
    index.json                  which index is current and which segments it covers

A segment the index does not cover yet is read directly, so that a lost or late index costs time,
never an answer. Where a key is in several segments, the newest segment's row counts: segment names
begin with the time their build was planned. A segment or an index that was removed since a reader
learnt of it holds nothing: what it held is looked for elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.cache.index import (
    Keys,
    Pointer,
    index_bytes,
    joined,
    prefixes,
    read_index,
    read_pointer,
    segment_keys,
    write_pointer,
)
from earwitness.cache.writing import ROW_GROUP_ROWS, SegmentWriter
from earwitness.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from earwitness.storage import Store

_READERS = 8
_STRAY_INDEX_S = 3600.0
"""An index file that nothing names may be about to be named, unless it is older than this."""


class SegmentCache:
    """A table from 32-byte keys to rows, on any storage, shared by all builds of an output.

    Safe for threads; what was read of an index or a segment is kept for the next look-up.

    Args:
        store: Folder of this table.
        columns: The table's columns besides `key`.
    """

    def __init__(self, store: Store, columns: pa.Schema) -> None:
        self._store = store
        self.schema = pa.schema([pa.field("key", pa.binary(32)), *columns])
        self._known: dict[str, Keys] = {}
        self._reading_index = threading.Lock()

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
        besides: str | None = None,
    ) -> dict[bytes, dict[str, Any]]:
        """Rows for as many of the keys as are known.

        Args:
            keys: 32-byte keys.
            near: Part of segment names to look at first (`.shard-00003`): a nightly build finds
                nearly everything where the last one's same shard put it, without the index.
            final: Whether a row found there may be taken without looking for a newer one.
            besides: Segments whose name begins with this are not read.

        Returns:
            key → row (column → value), the newest row for each.
        """
        missing = dict.fromkeys(keys)
        found: dict[bytes, dict[str, Any]] = {}
        if not missing:
            return found
        names = self.segments()
        left_out = [name for name in names if besides is not None and name.startswith(besides)]
        segments = [name for name in names if name not in left_out]
        if near:
            close = [name for name in segments if f"{near}-" in name][-2:]
            self._collect([self._segment_keys(name) for name in close], missing, found)
            unsure = [key for key, row in found.items() if not final(row)]
            for key in unsure:
                del found[key]
                missing[key] = None
        if missing:
            known = [keys.without(left_out) for keys in self._all_keys(segments)]
            self._collect(known, missing, found)
        return found

    def all_keys(self) -> Keys:
        """The keys of all segments, indexed or not, in one."""
        return joined(self._all_keys(self.segments()))

    def _all_keys(self, segments: list[str]) -> list[Keys]:
        keys, covered = self._indexed()
        fresh = [name for name in segments if name not in covered]
        with ThreadPoolExecutor(_READERS) as pool:
            read = list(pool.map(self._segment_keys, fresh))
        return [keys, *read] if keys is not None else read

    def _indexed(self) -> tuple[Keys | None, set[str]]:
        """The current index, and the segments it covers."""
        for _ in range(2):  # the second time: the index was replaced since its name was read
            pointer = read_pointer(self._store)
            if not pointer.index:
                break
            try:
                return self._index_keys(pointer), set(pointer.segments)
            except FileNotFoundError:
                continue
        return None, set()

    def segments(self) -> list[str]:
        """Names of all segments, oldest first."""
        return list(self.sizes())

    def sizes(self) -> dict[str, int]:
        """Segments and their sizes in bytes, oldest first."""
        return {
            path.removeprefix("segments/").removesuffix(".parquet"): size
            for path, size in self._store.sizes("segments").items()
            if path.endswith(".parquet")
        }

    @contextmanager
    def reading(self, name: str) -> Iterator[pq.ParquetFile]:
        """A segment's file, to look into it.

        Raises:
            FileNotFoundError: There is no such segment.
        """
        with self._store.open(f"segments/{name}.parquet") as file:
            yield pq.ParquetFile(file)

    def merge(self) -> int:
        """Bring segments that the index does not cover yet into a new index.

        Returns:
            How many segments were added. Two builds merging at once is fine: what the later
            pointer does not cover is read directly until the next merge.
        """
        segments = self.segments()
        covered = read_pointer(self._store).segments
        fresh = set(segments).difference(covered)
        gone = set(covered).difference(segments)
        if fresh or gone:
            self._write_index(joined(self._all_keys(segments)).without(gone))
        return len(fresh)

    def drop(self, names: Collection[str]) -> None:
        """Remove segments: from the index first, then themselves. Killed, do it again.

        Args:
            names: Segments; those already gone are fine.
        """
        segments = self.segments()
        gone = {*names, *set(read_pointer(self._store).segments).difference(segments)}
        self._write_index(joined(self._all_keys(segments)).without(gone))
        self._store.delete_many([f"segments/{name}.parquet" for name in names])

    def _write_index(self, keys: Keys) -> None:
        pointer = read_pointer(self._store)
        data = index_bytes(keys)
        # the names, too: the same numbers over other segments are another index
        digest = hashlib.sha256(json.dumps(keys.segments).encode() + data).hexdigest()
        index = f"index-{digest[:16]}.parquet"
        if index == pointer.index:
            return
        self._store.write_bytes(index, data)
        write_pointer(self._store, Pointer(index, pointer.index, keys.segments))
        if pointer.previous not in {"", index, pointer.index}:
            self._store.delete([pointer.previous])

    def sweep(self) -> None:
        """Delete index files that killed processes left behind long ago."""
        pointer = read_pointer(self._store)
        old = time.time() - _STRAY_INDEX_S
        self._store.delete(
            path
            for path, entry in self._store.entries().items()
            if path.startswith("index-")
            and path not in {pointer.index, pointer.previous}
            and entry.modified_s < old
        )

    def _index_keys(self, pointer: Pointer) -> Keys:
        with self._reading_index:  # batches ask at the same moment: one reads it for all
            known = self._known.get(pointer.index)
            if known is None:
                known = read_index(self._store, pointer)
                for name in list(self._known):
                    if name.startswith("index-"):
                        self._known.pop(name)
                self._known[pointer.index] = known
            return known

    def _segment_keys(self, name: str) -> Keys:
        known = self._known.get(name)
        if known is None:
            try:
                with self._store.open(f"segments/{name}.parquet") as file:
                    column = pq.read_table(file, columns=["key"])["key"]
            except FileNotFoundError:  # removed since it was listed
                return segment_keys(name, [])
            known = segment_keys(name, cast("list[bytes]", column.to_pylist()))
            self._known[name] = known
        return known

    def _collect(
        self,
        sources: Iterable[Keys],
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
        newest_first = sorted(places, reverse=True)  # the first hit counts
        with ThreadPoolExecutor(_READERS) as pool:
            for rows in pool.map(lambda name: self._read(name, places[name]), newest_first):
                for at, row in rows:
                    if row["key"] == wanted[at] and wanted[at] in missing:
                        del missing[wanted[at]]
                        found[wanted[at]] = row

    def _read(
        self, segment: str, places: list[tuple[int, int]]
    ) -> Iterable[tuple[int, dict[str, Any]]]:
        """Rows of a segment at the given positions; only the row groups they are in are read."""
        groups = sorted({position // ROW_GROUP_ROWS for _, position in places})
        try:
            with self._store.open(f"segments/{segment}.parquet") as file:
                table = pq.ParquetFile(file).read_row_groups(groups)
        except FileNotFoundError:  # removed since it was indexed or listed
            return []
        start = {group: number * ROW_GROUP_ROWS for number, group in enumerate(groups)}
        offsets = [start[at // ROW_GROUP_ROWS] + at % ROW_GROUP_ROWS for _, at in places]
        rows = table.take(pa.array(offsets, pa.int64())).to_pylist()
        return [(at, row) for (at, _), row in zip(places, rows, strict=True)]
