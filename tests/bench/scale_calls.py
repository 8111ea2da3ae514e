"""How often a build calls object storage: from the code, checked by counting small builds.

A build makes some calls whatever its size, some a shard, some a batch. Where a call lists or reads
more as things grow (pages of a thousand, chunks of 4,096 rows, segments that no index covers yet),
that is a term of its own. `exists` is one HEAD, and a LIST where nothing is there; opening an
object is one HEAD, reading it one GET or more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

PAGE = 1000
"""Keys a listing's page holds, and a deletion takes."""
CHUNK = 4096
"""Rows that resolve looks up at once, and that a row group holds."""
LARGE_ROWS = 256
"""From about here on Parquet objects are read in two pieces."""
OPERATIONS = ("LIST", "HEAD", "GET clip", "GET", "PUT", "DELETE")


class Kind(StrEnum):
    """What a build finds when it begins."""

    COLD = "first build"
    CHANGED = "1 % changed"
    SAME = "nothing changed"


@dataclass(frozen=True, slots=True)
class Build:
    """A build of clips of their own, one a record, under prefixes of thousands of clips.

    Attributes:
        rows: Records.
        kind: What it finds.
        shard_rows: As the layout's.
        batch_rows: As the layout's.
        changed: Share of the records that are asked again where some changed.
        on_pool: Each shard has a process of its own; else all share one.
    """

    rows: int
    kind: Kind
    shard_rows: int = 20_000
    batch_rows: int = 512
    changed: float = 0.01
    on_pool: bool = True

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.rows // 1_000_000} million, {self.kind}"

    @property
    def shards(self) -> int:
        """How many it has."""
        return ceil(self.rows / self.shard_rows)

    @property
    def asked(self) -> int:
        """Records that the engine answers."""
        share = {Kind.COLD: 1.0, Kind.CHANGED: self.changed, Kind.SAME: 0.0}[self.kind]
        return round(self.rows * share)

    @property
    def batches(self) -> int:
        """In all shards."""
        return self.shards * ceil(self.asked / self.shards / self.batch_rows)

    @property
    def chunks(self) -> int:
        """Chunks a shard, of what is looked up at once."""
        return ceil(self.shard_rows / CHUNK)

    @property
    def keys_before(self) -> int:
        """Outcomes in the cache when it begins."""
        return 0 if self.kind is Kind.COLD else self.rows

    @property
    def keys_after(self) -> int:
        """Outcomes in the cache when it ends."""
        return self.keys_before + self.asked

    @property
    def task_runs(self) -> int:
        """Of Prefect: four a batch; resolve, persist and the place in the parent a shard."""
        return 4 * self.batches + 3 * self.shards + 2


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls by operation, and where they are made.

    Attributes:
        of: All, by operation.
        shards: Of them, by flow runs of shards, clips excluded.
        publish: Of them, by publish.
        unindexed: Of them, to read segments of this very build that no index covers yet.
    """

    of: dict[str, float] = field(default_factory=dict)
    shards: float = 0.0
    publish: float = 0.0
    unindexed: float = 0.0


_Terms = dict[str, tuple[int, int, int]]
_TERMS: dict[Kind, _Terms] = {
    Kind.COLD: {"LIST": (20, 7, 2), "HEAD": (18, 10, 3), "GET": (24, 15, 5), "PUT": (11, 8, 1)},
    Kind.SAME: {"LIST": (17, 8, 0), "HEAD": (10, 16, 0), "GET": (17, 20, 0), "PUT": (7, 6, 0)},
    Kind.CHANGED: {"LIST": (17, 8, 2), "HEAD": (13, 16, 3), "GET": (25, 21, 5), "PUT": (11, 8, 1)},
}
"""Calls a build, a shard and a batch: receipts, plans, gates, segments, markers, checks."""
_TABLES = 2
_FILES_A_SHARD = 2


def calls(build: Build) -> Calls:
    """Count a build's calls.

    Args:
        build: Its size and what it finds.
    """
    shards, batches = build.shards, build.batches
    terms = _TERMS[build.kind]
    of = {name: a + s * shards + t * batches for name, (a, s, t) in terms.items()}
    fixed = {name: a for name, (a, _, _) in terms.items()}
    # further chunks of a shard look into both tables anew (in a first build into that of clips),
    # and read the gates twice
    known, more = build.kind is not Kind.COLD, (build.chunks - 1) * shards
    of["LIST"] += more * (_TABLES if known else 1) + _more_pages(build)
    of["HEAD"] += more * _TABLES * known
    of["GET"] += more * (2 + _TABLES * known * _reads(build.shard_rows) + (build.asked > 0))
    # a shard that reuses much: the segments of its first chunk, and what resolve decided
    of["GET"] += shards * known * (2 * _TABLES + 7) * (_reads(build.shard_rows) - 1)
    if batches:
        of["GET"] += batches * 2 * (_reads(build.asked // batches) - 1)
    # known by its stamp, a clip is read again to be asked about
    of["GET clip"] = build.asked
    of["DELETE"] = ceil((batches + 2 * shards) / PAGE)
    opened = _unindexed(build)
    own = opened * (1 + _reads(build.asked // shards))
    of["HEAD"] += opened
    of["GET"] += own - opened + (shards if build.on_pool else 0)
    merged = _TABLES * shards * (1 + _reads(build.asked // shards)) * (own > 0)
    publish = sum(fixed.values()) + shards * (1 + 2 * _FILES_A_SHARD) + merged + of["DELETE"]
    made = {name: float(count) for name, count in of.items()}
    elsewhere = sum(made.values()) - made["GET clip"] - publish
    return Calls(made, elsewhere, publish, own)


def _reads(rows: int) -> int:
    """Requests that reading a Parquet object of so many rows takes: its end, then its columns."""
    return 1 if rows < LARGE_ROWS else 2


def _more_pages(build: Build) -> float:
    """Pages of listings beyond each listing's first: of clips, and of the cache's segments."""
    clips = build.shards * (ceil(build.shard_rows / PAGE) - 1)
    before = 0 if build.kind is Kind.COLD else build.shards
    added = build.shards if build.asked else 0
    pages = max(0.0, (before + added / 2) / PAGE - 1)
    listings = build.shards * build.chunks * _TABLES + build.batches
    return clips + pages * listings


def _unindexed(build: Build) -> float:
    """How often segments that this build has written are opened before publish has merged them.

    A process reads each once: where all shards share one, that is all; on a pool each shard reads
    those of all shards before it, and publish all.
    """
    if not build.asked:
        return 0.0
    segments = build.shards * (build.shards + 1) / 2 if build.on_pool else build.shards
    return float(_TABLES * segments)
