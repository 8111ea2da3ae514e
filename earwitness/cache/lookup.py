"""Rows of kept builds, found by key: the base's own shard first, then every source's keys.

    outcomes/shard-00000-<digest8>.parquet     key (32 bytes) and the table's own columns
    clips/shard-00000-<digest8>.parquet

Nothing here is needed to be right: a file or an index that is missing, or was removed since, holds
nothing, and what it held is asked again.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.cache.keys import Keys, StoredKeys, prefixes, read_keys
from earwitness.cache.writing import ROW_GROUP_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from earwitness.storage import Store

    Row = dict[str, Any]
    Place = tuple[int, str, int]

_READERS = 8
_KEPT_FILES = 16
"""Files whose keys stay in memory: those of the shards that are worked on, and their neighbours."""
_SHARD = re.compile(r"shard-(\d+)-[0-9a-f]{8}\.parquet")


class Source(Protocol):
    """One build's rows of one table."""

    def find(self, keys: Sequence[bytes]) -> Iterator[Row]:
        """Rows that the build holds under some of these keys."""


class Lookup:
    """One table of all builds that a build reuses.

    Args:
        base: The build whose same shard is read first; None: there is none.
        sources: All builds, newest first, the base among them.
    """

    def __init__(self, base: StoredTable | None, sources: Sequence[Source]) -> None:
        self._base = base
        self._sources = sources

    def find(
        self,
        keys: Iterable[bytes],
        shard: int,
        fits: Callable[[Row], bool] = lambda _: True,
        surely: Callable[[Row], bool] = lambda _: True,
    ) -> dict[bytes, Row]:
        """Rows for as many of the keys as are known.

        Args:
            keys: 32-byte keys.
            shard: The shard that asks.
            fits: Whether a row may be taken. Where none fits, the first one found is given.
            surely: Whether a row that fits, found in the base's shard, may be taken though a newer
                build may know better.

        Returns:
            key → row (column → value).
        """
        missing = dict.fromkeys(keys)
        found: dict[bytes, Row] = {}
        if missing and self._base is not None:
            for row in self._base.near(list(missing), shard):
                if row["key"] in missing and fits(row) and surely(row):
                    found[row["key"]] = row
                    del missing[row["key"]]
        for source in self._sources:
            if not missing:
                break
            for row in source.find(list(missing)):
                if row["key"] in missing and fits(row):
                    del missing[row["key"]]
                    found[row["key"]] = row
                else:
                    found.setdefault(row["key"], row)
        return found


class StoredTable:
    """One table of one build, as its shards wrote it.

    Safe for threads.

    Args:
        store: The build's folder.
        table: `outcomes` or `clips`.
    """

    def __init__(self, store: Store, table: str) -> None:
        self._store = store
        self._table = table
        self._lock = threading.Lock()
        self._paths: list[str] | None = None
        self._sorted: StoredKeys | None = None
        self._files: dict[str, Keys] = {}
        self._all: Keys | None = None

    def near(self, keys: Sequence[bytes], shard: int) -> Iterator[Row]:
        """Rows that a shard and its neighbours hold under some of these keys."""
        missing = dict.fromkeys(keys)
        for number in (shard, shard - 1, shard + 1):
            if missing:
                wanted = list(missing)
                paths = [path for path in self.paths() if shard_of(path) == number]
                places = (place for path in paths for place in self._locate(path, wanted))
                for row in self._read(wanted, places):
                    missing.pop(row["key"], None)
                    yield row

    def find(self, keys: Sequence[bytes]) -> Iterator[Row]:
        """Rows that the build holds under some of these keys."""
        stored = self._stored_keys()
        if stored is not None:
            yield from self._read(keys, stored.locate(keys))
            return
        with self._lock:
            if self._all is None:
                self._all = read_keys(self._store, self.paths())
        yield from self._read(keys, self._all.locate(prefixes(keys)))

    def paths(self) -> list[str]:
        """Its files, listed once."""
        if self._paths is None:
            there = self._store.sizes(self._table)
            self._paths = [path for path in there if shard_of(path) is not None]
        return self._paths

    def _stored_keys(self) -> StoredKeys | None:
        with self._lock:
            if self._sorted is None:
                with suppress(FileNotFoundError):
                    self._sorted = StoredKeys(self._store, self._table)
            return self._sorted

    def _locate(self, path: str, keys: Sequence[bytes]) -> Iterator[Place]:
        """Where the keys are in one file."""
        with self._lock:
            known = self._files.get(path)
        if known is None:
            known = read_keys(self._store, [path])
        with self._lock:
            self._files[path] = known
            while len(self._files) > _KEPT_FILES:
                self._files.pop(next(iter(self._files)))
        yield from known.locate(prefixes(keys))

    def _read(self, keys: Sequence[bytes], places: Iterable[Place]) -> Iterator[Row]:
        by_file: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, file, position in places:
            by_file[file].append((at, position))
        with ThreadPoolExecutor(_READERS) as pool:
            for path, rows in zip(
                by_file, pool.map(self._rows, by_file, by_file.values()), strict=True
            ):
                for (at, _), row in zip(by_file[path], rows, strict=False):
                    if row["key"] == keys[at]:  # prefixes may be shared
                        yield row

    def _rows(self, path: str, places: list[tuple[int, int]]) -> list[Row]:
        """Rows of a file at the given positions; only the row groups they are in are read."""
        groups = sorted({position // ROW_GROUP_ROWS for _, position in places})
        try:
            with self._store.open(path) as file:
                table = pq.ParquetFile(file).read_row_groups(groups)
        except FileNotFoundError:
            return []
        start = {group: number * ROW_GROUP_ROWS for number, group in enumerate(groups)}
        offsets = [start[at // ROW_GROUP_ROWS] + at % ROW_GROUP_ROWS for _, at in places]
        return table.take(pa.array(offsets, pa.int64())).to_pylist()


def shard_of(path: str) -> int | None:
    """The shard that a table's file is of; None where the file is another one."""
    found = _SHARD.fullmatch(path.rpartition("/")[2])
    return int(found[1]) if found else None
