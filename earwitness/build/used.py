"""What builds use of the cache: the keys of their outcomes, and of their clips."""

from __future__ import annotations

import json
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from earwitness.audio.facts import sound_of
from earwitness.build.resolve import read_lines
from earwitness.cache.index import prefixes
from earwitness.cache.tables import sighting_from_row, uri_key
from earwitness.errors import BuildDamagedError
from earwitness.identity import cache_key
from earwitness.manifest.planned import parse_asked
from earwitness.records import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from earwitness.build.layout import Build, Receipt
    from earwitness.cache import ClipSighting, SegmentCache
    from earwitness.records import Json, PlannedRow

_READERS = 16
_CHUNK_ROWS = 4096
_PREFIX_DIGITS = 16
"""Hex digits of a key that its prefix in the index holds."""


@dataclass(frozen=True, slots=True)
class Used:
    """What a shard uses.

    Attributes:
        rows: How many rows it has.
        outcomes: Prefixes of its rows' cache keys.
        clips: Prefixes of the keys of its clips' URIs.
        unsure: True when some of its rejections have a key that cannot be told from here: their
            clips come from storage without stamps.
    """

    rows: int
    outcomes: NDArray[np.uint64]
    clips: NDArray[np.uint64]
    unsure: bool


class Sightings:
    """What the clip table knows, for many threads.

    Args:
        cache: The clip table.
    """

    def __init__(self, cache: SegmentCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()

    def of(self, uris: Iterable[str]) -> dict[str, ClipSighting]:
        """The newest sighting of each URI that was ever seen."""
        keys = {uri_key(uri): uri for uri in uris}
        with self._lock:
            found = self._cache.find(list(keys))
        return {keys[key]: sighting_from_row(row) for key, row in found.items()}


def used_by(builds: Iterable[Build], sightings: Sightings) -> Iterator[Used]:
    """What builds use, shard by shard; a few shards are in memory at once.

    Args:
        builds: Planned builds.
        sightings: The clip table.

    Raises:
        BuildDamagedError: A build's files are missing or changed.
    """
    told: set[str] = set()

    def shards() -> Iterator[tuple[Build, int, bool]]:
        for build in builds:
            for number, shard in enumerate(build.plan.shards):
                # the same rows are planned night after night
                yield build, number, shard.sha256 not in told
                told.add(shard.sha256)

    with ThreadPoolExecutor(_READERS) as pool:
        todo = (
            pool.submit(_of_shard, build, shard, sightings, clips_too=clips_too)
            for build, shard, clips_too in shards()
        )
        running = deque(islice(todo, 2 * _READERS))
        while running:
            yield running.popleft().result()
            running.extend(islice(todo, 1))


def _of_shard(build: Build, shard: int, sightings: Sightings, *, clips_too: bool) -> Used:
    try:
        return _Shard(build, shard, sightings).used(clips_too=clips_too)
    except FileNotFoundError as error:
        raise BuildDamagedError(
            f"{build.uri}: a file of shard {shard} is missing: {error}"
        ) from error


class _Shard:
    """One shard of a build."""

    def __init__(self, build: Build, shard: int, sightings: Sightings) -> None:
        self._build = build
        self._shard = shard
        self._sightings = sightings
        self._column = build.plan.settings.layout.provenance_column
        self._keys: list[str] = []
        self._unsure = False

    def used(self, *, clips_too: bool) -> Used:
        receipt = self._build.receipt(self._shard)
        rows = self._build.plan.shards[self._shard].rows
        clips: list[NDArray[np.uint64]] = []
        open_rows: set[int] | None = None
        if receipt is not None:
            self._keys += self._answered(receipt)
            open_rows = set(self._refused(receipt))
        if clips_too or open_rows is None or open_rows:
            planned = read_lines(self._build, self._shard, parse_asked)
            while chunk := list(islice(planned, _CHUNK_ROWS)):
                uris = dict.fromkeys(uri for row in chunk for uri in row.clips)
                clips.append(prefixes([uri_key(uri) for uri in uris]))
                self._find_keys(chunk, open_rows)
        return Used(
            rows,
            np.fromiter((int(key[:_PREFIX_DIGITS], 16) for key in self._keys), np.uint64),
            np.concatenate([np.empty(0, np.uint64), *clips]),
            self._unsure,
        )

    def _answered(self, receipt: Receipt) -> Iterator[str]:
        """The cache keys of answered rows."""
        files = [file.path for file in receipt.files]
        parquet = [path for path in files if path.endswith(".parquet")]
        for path in parquet:
            with self._build.store.open(path) as file:
                column = f"{self._column}.cache_key"
                for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
                    struct: Any = batch.column(0)
                    yield from struct.field("cache_key").to_pylist()
        if not parquet:
            for path in files:
                if path.startswith("jsonl/"):
                    for row in self._lines(path):
                        yield row[self._column]["cache_key"]

    def _refused(self, receipt: Receipt) -> Iterator[int]:
        """Rows whose rejection has a cache key: what an engine said of them."""
        for file in receipt.files:
            if file.path.startswith("rejected/"):
                for row in self._lines(file.path):
                    why = row[self._column]
                    if why["stage"] == Stage.GENERATE:
                        yield why["row"]

    def _lines(self, path: str) -> Iterator[Json]:
        with self._build.store.open(path) as file:
            for line in file:
                yield json.loads(line)

    def _find_keys(self, rows: list[PlannedRow], wanted: set[int] | None) -> None:
        """The cache keys of rows that have no answer here, as the next resolve would tell them."""
        chosen = [
            row for row in rows if row.rejection is None and (wanted is None or row.row in wanted)
        ]
        if not chosen:
            return
        known = self._sightings.of(dict.fromkeys(uri for row in chosen for uri in row.clips))
        digest, policy = self._build.plan.question_digest, self._build.plan.settings.audio
        for row in chosen:
            facts = [one.facts for uri in row.clips if (one := known.get(uri)) and one.facts]
            sounds = [sound.pcm_sha256 for one in facts if (sound := sound_of(one, policy))]
            if len(sounds) == len(row.clips):
                self._keys.append(cache_key(sounds, row.messages, digest))
            elif wanted is not None:
                self._unsure = True
