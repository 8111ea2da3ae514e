"""The sorted index over a table's segments, in memory and as it is stored."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from earwitness.storage import Store

_PREFIX_BYTES = 8
_POINTER = "index.json"
_GROUP_ROWS = 1 << 20


@dataclass(slots=True)
class Pointer:
    """`index.json`: the current index file, the one before it, the segments covered in order."""

    index: str = ""
    previous: str = ""
    segments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Keys:
    """Sorted key prefixes and where each key is: `segments[segment[i]]`, row `position[i]`."""

    prefix: NDArray[np.uint64]
    segment: NDArray[np.int32]
    position: NDArray[np.int32]
    segments: list[str]

    def locate(self, wanted: NDArray[np.uint64]) -> list[tuple[int, str, int]]:
        """(index into wanted, segment name, position) for every possible match."""
        # in order: neighbours are near each other in memory, which is most of the time it takes
        order = np.argsort(wanted)
        first = np.searchsorted(self.prefix, wanted[order], side="left")
        last = np.searchsorted(self.prefix, wanted[order], side="right")
        hits = np.nonzero(last > first)[0]
        return [
            (i, self.segments[self.segment[at]], int(self.position[at]))
            for i, start, end in zip(
                order[hits].tolist(), first[hits].tolist(), last[hits].tolist(), strict=True
            )
            for at in range(start, end)
        ]

    def without(self, gone: Collection[str]) -> Keys:
        """The same without the keys of some segments."""
        stays = np.array([name not in gone for name in self.segments], bool)
        if stays.all():
            return self
        number = np.cumsum(stays, dtype=np.int32) - np.int32(1)
        chosen = stays[self.segment]
        return Keys(
            self.prefix[chosen],
            number[self.segment[chosen]],
            self.position[chosen],
            [name for name in self.segments if name not in gone],
        )


def joined(parts: Sequence[Keys]) -> Keys:
    """The keys of several sources with segments of their own, sorted."""
    if len(parts) == 1:
        return parts[0]
    segment, names = [np.empty(0, np.int32)], list[str]()
    for part in parts:
        segment.append(part.segment + np.int32(len(names)))
        names += part.segments
    prefix = np.concatenate([np.empty(0, np.uint64), *(part.prefix for part in parts)])
    position = np.concatenate([np.empty(0, np.int32), *(part.position for part in parts)])
    order = np.argsort(prefix, kind="stable")
    return Keys(prefix[order], np.concatenate(segment)[order], position[order], names)


def segment_keys(name: str, keys: Sequence[bytes]) -> Keys:
    """The keys of one segment.

    Args:
        name: The segment.
        keys: Its keys in row order.
    """
    prefix = prefixes(keys)
    order = np.argsort(prefix, kind="stable").astype(np.int32)
    return Keys(prefix[order], np.zeros(len(order), np.int32), order, [name])


def prefixes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    """The first eight bytes of each key as a big-endian number, shape (len(keys),)."""
    together = b"".join(key[:_PREFIX_BYTES] for key in keys)
    return np.frombuffer(together, dtype=">u8").astype(np.uint64)


def read_pointer(store: Store) -> Pointer:
    """What `index.json` says; an empty pointer where there is none."""
    try:
        known = json.loads(store.read_bytes(_POINTER))
    except FileNotFoundError:
        return Pointer()
    return Pointer(known["index"], known["previous"], known["segments"])


def write_pointer(store: Store, pointer: Pointer) -> None:
    """Make an index the current one."""
    known = {"index": pointer.index, "previous": pointer.previous, "segments": pointer.segments}
    store.write_bytes(_POINTER, json.dumps(known, indent=1).encode())


def index_bytes(keys: Keys) -> bytes:
    """An index file; equal keys give equal bytes.

    Sorted prefixes are stored as differences and segments as numbers in a dictionary: half the
    size of the plain columns, and read in a quarter of the time (10,000,000 keys: 82 MB, 0.1 s).
    """
    table = pa.table(
        {
            "prefix": pa.array(keys.prefix),
            "segment": pa.array(keys.segment),
            "position": pa.array(keys.position),
        }
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=_GROUP_ROWS,
        compression="none",
        use_dictionary=["segment"],  # type: ignore[arg-type] # the stubs know bool alone
        column_encoding={"prefix": "DELTA_BINARY_PACKED", "position": "DELTA_BINARY_PACKED"},
    )
    return sink.getvalue()


def read_index(store: Store, pointer: Pointer) -> Keys:
    """The index file a pointer names.

    Raises:
        FileNotFoundError: It was replaced, and removed, since the pointer was read.
    """
    with store.open(pointer.index) as file:
        table = pq.read_table(file)
    return Keys(
        table["prefix"].to_numpy(),
        table["segment"].to_numpy(),
        table["position"].to_numpy(),
        pointer.segments,
    )
