"""The sorted keys of a build's stored tables, and a Bloom filter over them.

    keys/<table>-00000.parquet         (first 8 bytes of key, file, position), sorted by prefix
    keys/<table>-00000-bloom.parquet   16 bits a key
    keys/<table>.json                  the parts in order, each with the files that it covers

A part covers whole files, as many as bound the memory that writing it takes.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from earwitness.storage import Store

KEY_BYTES = 32
_PREFIX_BYTES = 8
PART_KEYS = 1 << 22
"""Sorting them takes some 200 MB."""
_GROUP_ROWS = 1 << 16
_BITS_A_KEY = 16
_HASHES = 4
"""With 16 bits a key: 0.24 % of unknown keys pass (Bloom's formula, (1 - e^(-k n / m))^k)."""


@dataclass(slots=True)
class Keys:
    """Sorted key prefixes and where each key is: `files[file[i]]`, row `position[i]`."""

    prefix: NDArray[np.uint64]
    file: NDArray[np.int32]
    position: NDArray[np.int32]
    files: list[str]

    def locate(self, wanted: NDArray[np.uint64]) -> Iterator[tuple[int, str, int]]:
        """(index into wanted, file, position) for every possible match."""
        # in order: neighbours are near each other in memory, which is most of the time it takes
        order = np.argsort(wanted)
        first = np.searchsorted(self.prefix, wanted[order], side="left")
        last = np.searchsorted(self.prefix, wanted[order], side="right")
        hits = np.nonzero(last > first)[0]
        for i, start, end in zip(
            order[hits].tolist(), first[hits].tolist(), last[hits].tolist(), strict=True
        ):
            for at in range(start, end):
                yield i, self.files[self.file[at]], int(self.position[at])


def prefixes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """The first eight bytes of each key as a big-endian number, shape (len(keys),)."""
    return _words(b"".join(keys))[:, 0].astype(np.uint64)


def _words(keys: bytes | pa.Buffer) -> NDArray[np.uint64]:
    """Keys as big-endian numbers, shape (keys, 4)."""
    return np.frombuffer(memoryview(keys), dtype=">u8").reshape(-1, KEY_BYTES // _PREFIX_BYTES)


def _read_words(store: Store, path: str) -> NDArray[np.uint64]:
    try:
        with store.open(path) as file:
            # read_table would import pyarrow.dataset, a third of a second
            column = pq.ParquetFile(file).read(["key"])["key"]
    except FileNotFoundError:  # removed since it was listed
        return _words(b"")
    parts: list[Any] = column.chunks
    # a slice of a larger buffer would start elsewhere; what is read from a file never does
    words = [_words(part.buffers()[1][: len(part) * KEY_BYTES]) for part in parts]
    return np.concatenate([_words(b""), *words])


def read_keys(store: Store, paths: Sequence[str]) -> Keys:
    """The keys of stored tables, read from the tables themselves.

    Args:
        store: A build's folder.
        paths: The tables' files; each has a column `key` of 32 bytes.
    """
    return _sorted([_read_words(store, path)[:, 0] for path in paths], list(paths))


def _sorted(prefix_by_file: Sequence[NDArray[np.uint64]], files: list[str]) -> Keys:
    counts = [len(part) for part in prefix_by_file]
    prefix = np.concatenate([np.empty(0, np.uint64), *prefix_by_file]).astype(np.uint64)
    file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    position = np.concatenate([np.empty(0, np.int32), *(np.arange(n) for n in counts)])
    order = np.argsort(prefix, kind="stable")
    return Keys(prefix[order], file[order], position[order].astype(np.int32), files)


def write_keys(store: Store, table: str, paths: Sequence[str], part_keys: int = PART_KEYS) -> None:
    """Write the sorted keys of a build's table; equal tables give equal bytes.

    Args:
        store: The build's folder.
        table: `outcomes` or `clips`.
        paths: Its files, in order.
        part_keys: A part ends with the file that brings it to this many keys.
    """
    parts: list[dict[str, Any]] = []
    words: list[NDArray[np.uint64]] = []
    files: list[str] = []

    def flush() -> None:
        name = f"keys/{table}-{len(parts):05d}"
        keys = _sorted([one[:, 0] for one in words], list(files))
        store.write_bytes(f"{name}.parquet", _keys_bytes(keys))
        store.write_bytes(
            f"{name}-bloom.parquet", _plain(pa.table({"bits": pa.array(_bloom(words))}))
        )
        parts.append({"name": name, "files": list(files)})
        words.clear()
        files.clear()

    for path in paths:
        words.append(_read_words(store, path))
        files.append(path)
        if sum(map(len, words)) >= part_keys:
            flush()
    if files:
        flush()
    store.write_bytes(f"keys/{table}.json", json.dumps(parts, indent=1).encode())


def _keys_bytes(keys: Keys) -> bytes:
    """Sorted prefixes stored as differences, files as numbers in a dictionary: half the size."""
    table = pa.table(
        {
            "prefix": pa.array(keys.prefix),
            "file": pa.array(keys.file),
            "position": pa.array(keys.position),
        }
    )
    encoding = {"prefix": "DELTA_BINARY_PACKED", "position": "DELTA_BINARY_PACKED"}
    return _plain(table, use_dictionary=["file"], column_encoding=encoding)


def _plain(table: pa.Table, **options: Any) -> bytes:
    """A table as Parquet, not compressed: what it holds is random."""
    sink = io.BytesIO()
    options = {"use_dictionary": False, **options}
    pq.write_table(table, sink, row_group_size=_GROUP_ROWS, compression="none", **options)
    return sink.getvalue()


def _bits(words: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """The bits that a filter of `size` bits has for keys, shape (keys, hashes)."""
    # a key is a SHA-256: its four words are independent hashes already
    return words[:, :_HASHES].astype(np.uint64) % np.uint64(size)


def _bloom(words: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint8]:
    size = 8 * max(1, sum(map(len, words)) * _BITS_A_KEY // 8)
    bits = np.zeros(size, bool)
    for part in words:
        bits[_bits(part, size).ravel()] = True
    return np.packbits(bits)


class StoredKeys:
    """The sorted keys that a published build has of one of its tables.

    Args:
        store: The build's folder.
        table: `outcomes` or `clips`.

    Raises:
        FileNotFoundError: It has none.
    """

    def __init__(self, store: Store, table: str) -> None:
        self._store = store
        self._parts: list[dict[str, Any]] = json.loads(store.read_bytes(f"keys/{table}.json"))
        self._filters: dict[str, NDArray[np.uint8]] = {}

    def locate(self, keys: Sequence[bytes]) -> Iterator[tuple[int, str, int]]:
        """(index into keys, file, position) for every possible match."""
        words = _words(b"".join(keys))
        for part in self._parts:
            maybe = np.nonzero(self._passes(part["name"], words))[0]
            if len(maybe):
                wanted = words[maybe, 0].astype(np.uint64)
                for group in self._groups(part, wanted):
                    for at, file, position in group.locate(wanted):
                        yield int(maybe[at]), file, position

    def _passes(self, name: str, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which keys the part's filter does not rule out."""
        bloom = self._filters.get(name)
        if bloom is None:
            with self._store.open(f"{name}-bloom.parquet") as file:
                bloom = pq.ParquetFile(file).read()["bits"].to_numpy()
            self._filters[name] = bloom
        bits = _bits(words, 8 * len(bloom))
        masks = np.uint8(128) >> (bits % np.uint64(8)).astype(np.uint8)
        passed: NDArray[np.bool_] = ((bloom[bits // np.uint64(8)] & masks) != 0).all(axis=1)
        return passed

    def _groups(self, part: dict[str, Any], wanted: NDArray[np.uint64]) -> Iterator[Keys]:
        """The row groups in which the wanted prefixes would be, one at a time."""
        ordered = np.sort(wanted)
        with self._store.open(f"{part['name']}.parquet") as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                ends: Any = parquet.metadata.row_group(group).column(0).statistics
                first = np.searchsorted(ordered, np.uint64(ends.min), side="left")
                last = np.searchsorted(ordered, np.uint64(ends.max), side="right")
                if last > first:
                    table = parquet.read_row_group(group)
                    prefix, number, position = (one.to_numpy() for one in table.columns)
                    yield Keys(prefix, number, position, part["files"])
