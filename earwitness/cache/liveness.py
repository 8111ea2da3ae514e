"""Which segments of a table nobody needs any more.

A segment is needed when it is the newest that holds a key in use: a look-up takes the newest. The
one before it is needed, too, where the two were written under other limits (`max_tokens`,
`max_model_len`): a shard that looks near itself first may take the older one. Keys are told apart
by their first eight bytes; two that share them keep a segment too long, or (one in some millions of
outputs) lose an older one, which costs one answer asked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from earwitness.cache.segments import SegmentCache

_LIMITS = ("max_tokens", "max_model_len")


class Liveness:
    """Marks segments by the keys in use; holds the index in memory, never the keys in use.

    Args:
        cache: The table.
    """

    def __init__(self, cache: SegmentCache) -> None:
        self._cache = cache
        self.sizes = cache.sizes()
        keys = cache.all_keys()
        # number segments by age, so that the last of equal prefixes is the newest
        names = sorted(set(keys.segments))
        age = {name: number for number, name in enumerate(names)}
        ages = np.array([age[name] for name in keys.segments], np.int32)[keys.segment]
        order = np.lexsort((ages, keys.prefix))
        self._names = names
        self._prefix = keys.prefix[order]
        self._age = ages[order]
        self._needed = np.zeros(len(names), bool)
        self._overtaken: set[tuple[int, int]] = set()

    def mark(self, keys: NDArray[np.uint64]) -> None:
        """Note that keys are in use.

        Args:
            keys: Prefixes of keys, as `prefixes` gives them.
        """
        first = np.searchsorted(self._prefix, keys, side="left")
        last = np.searchsorted(self._prefix, keys, side="right")
        first, last = first[last > first], last[last > first]
        newest = self._age[last - 1]
        self._needed[newest] = True
        before = last - 2
        while (there := before >= first).any():
            first, newest, before = first[there], newest[there], before[there]
            older = self._age[before]
            pairs = np.unique(np.stack([older, newest]), axis=1)
            self._overtaken.update(map(tuple, pairs.T.tolist()))
            before = before - 1

    def unneeded(self, candidates: Collection[str]) -> list[str]:
        """Those of some segments that nothing in use needs.

        Args:
            candidates: Names of segments.
        """
        wanted = set(candidates)
        left = {
            number
            for number, name in enumerate(self._names)
            if name in wanted and name in self.sizes and not self._needed[number]
        }
        limits: dict[int, Any] = {}
        for older, newest in sorted(self._overtaken):
            if older in left:
                for number in (older, newest):
                    if number not in limits:
                        limits[number] = self._limits(self._names[number])
                if limits[older] != limits[newest]:
                    left.discard(older)
        return [self._names[number] for number in sorted(left)]

    def _limits(self, name: str) -> dict[str, tuple[Any, Any]]:
        """The smallest and largest of each limit a segment's rows were decided under."""
        wanted = [column for column in _LIMITS if column in self._cache.schema.names]
        if not wanted:
            return {}
        with self._cache.reading(name) as file:
            table = file.read(wanted)
        ends: list[Any] = [pc.min_max(table[column]).as_py() for column in wanted]
        return {column: (end["min"], end["max"]) for column, end in zip(wanted, ends, strict=True)}
