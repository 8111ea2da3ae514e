"""A batch on its way through fetch, validate, decode and generate.

Between the stages a batch is a small JSON file in its scratch folder; only its reference travels
from task to task. After generate it is one Parquet segment under the build's `work/`: the
checkpoint.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from earwitness.audio.facts import judge, sound_of
from earwitness.builds.layout import work_path
from earwitness.cache.tables import (
    HEARD_CLIPS,
    OUTCOME_COLUMNS,
    ClipRecord,
    clip_from_row,
    clip_row,
    clip_table,
    heard_clips,
    outcome_from_row,
    outcome_row,
)
from earwitness.cache.writing import parquet_bytes
from earwitness.engine.usage import NO_USAGE, Usage
from earwitness.identity import KEY_VERSION
from earwitness.records import (
    TRANSIENT_REASONS,
    ClipFacts,
    HeardClip,
    HeardSound,
    Outcome,
    Reason,
    Rejection,
)
from earwitness.scratch import scratch_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from earwitness.builds.layout import Build
    from earwitness.settings import AudioSettings


@dataclass(frozen=True, slots=True)
class BatchRef:
    """What travels between tasks: where a batch is, never what is in it.

    Attributes:
        build: The build's address.
        shard: Number of the shard.
        batch: Number of the batch inside the shard.
        rows: How many records it holds.
        digest: Over the batch's cache keys, once they are known; names its segment.
    """

    build: str
    shard: int
    batch: int
    rows: int
    digest: str = ""

    @property
    def segment(self) -> str:
        """Path of the batch's segment inside the build."""
        return f"{work_path(self.shard)}/batch-{self.batch:05d}-{self.digest}.parquet"


@dataclass(slots=True)
class ClipState:
    """One clip of a batch.

    Attributes:
        uri: Its address.
        stamp: Storage's stamp, as resolve saw it, then as fetch did.
        sha256: Of its bytes, once they are known.
        rejection: Why no record with this clip is asked.
        seen: What earlier builds know of it; holds for equal bytes.
        facts: What is known of its bytes.
        sound: The sound it has under the build's settings, once it was made.
    """

    uri: str
    stamp: str = ""
    sha256: str | None = None
    rejection: Rejection | None = None
    seen: ClipRecord | None = None
    facts: ClipFacts | None = None
    sound: HeardSound | None = None

    def learn(self, facts: ClipFacts, policy: AudioSettings) -> None:
        """Take facts about the clip's bytes, and hold them against the build's settings."""
        self.facts = facts
        self.rejection = judge(facts, policy)
        self.sound = sound_of(facts, policy)

    @property
    def heard(self) -> HeardClip | None:
        """The clip as the model hears it; None as long as that is not known."""
        if self.sha256 is None or self.sound is None or self.facts is None:
            return None
        return HeardClip(self.sha256, self.facts.duration_s or 0.0, self.sound.heard_s)


@dataclass(slots=True)
class RowState:
    """One record of a batch; `outcome` is set as soon as it is decided.

    `heard`: its clips, once all are known. `reused`: the outcome is one that the cache held before
    this build. `strikes`: see `Rejection.strikes`, as earlier builds counted them.
    """

    row: int
    clips: list[str]
    messages: list[Any]
    cache_key: str = ""
    heard: tuple[HeardClip, ...] = ()
    outcome: Outcome | None = None
    reused: bool = False
    strikes: int = 0


@dataclass(slots=True)
class Batch:
    """The records of a batch and their clips by URI."""

    rows: list[RowState]
    clips: dict[str, ClipState] = field(default_factory=dict)

    def open_rows(self) -> list[RowState]:
        """Records whose outcome is not decided yet."""
        return [row for row in self.rows if row.outcome is None]

    def open_clips(self) -> dict[str, list[ClipState]]:
        """Clips that undecided records still need, grouped by content."""
        found: dict[str, list[ClipState]] = {}
        wanted = dict.fromkeys(uri for row in self.open_rows() for uri in row.clips)
        for uri in wanted:
            clip = self.clips[uri]
            if clip.sha256 is not None and clip.rejection is None:
                found.setdefault(clip.sha256, []).append(clip)
        return found

    def side_by_side(self) -> list[RowState]:
        """All records as they are best asked: those about the same clip together.

        What an engine made of a clip it keeps for a while; the next question about it costs a part
        of the first one. Clips, and the questions about one, stay in the order they came in.
        """
        places: dict[str, int] = {}

        def place(row: RowState) -> int:
            first = row.clips[0] if row.clips else ""
            clip = self.clips.get(first)
            content = clip.sha256 if clip is not None else None
            return places.setdefault(content or first, len(places))

        return sorted(self.rows, key=place)

    def reject_rows(self, max_tokens: int) -> None:
        """Decide every undecided record that has a rejected clip; its first one counts."""
        for row in self.open_rows():
            for number, uri in enumerate(row.clips, start=1):
                rejection = self.clips[uri].rejection
                if rejection is not None:
                    where = f"clip {number} of {len(row.clips)}: " if len(row.clips) > 1 else ""
                    told = Rejection(rejection.stage, rejection.reason, where + rejection.detail)
                    states = map(self.clips.__getitem__, row.clips)
                    heard = tuple(heard for clip in states if (heard := clip.heard))
                    row.outcome = Outcome(
                        row.cache_key, None, told, clips=heard, max_tokens=max_tokens
                    )
                    break

    def clip_records(self) -> list[ClipRecord]:
        """What the batch's stages found out about its clips, for the builds after this one."""
        found = map(_clip_record, self.clips.values())
        return [clip_record for clip_record in found if clip_record is not None]


def _clip_record(clip: ClipState) -> ClipRecord | None:
    if clip.sha256 is not None:
        return ClipRecord(clip.uri, clip.stamp, clip.sha256, None, clip.facts)
    rejection = clip.rejection
    if rejection is None or rejection.transient or rejection.reason in _JUDGED_ANEW:
        return None
    if rejection.reason is Reason.CLIP_MISSING:
        return missing_clip(clip.uri, clip.seen)
    # storage that denies reading may deny a stamp, too
    if clip.stamp or rejection.reason is Reason.ACCESS_DENIED:
        return ClipRecord(clip.uri, clip.stamp, None, rejection)
    return None


def missing_clip(uri: str, seen: ClipRecord | None) -> ClipRecord:
    """A clip that is not there now: what was known of it holds again when it is back."""
    return replace(seen or ClipRecord(uri, "", None), missing=True)


_JUDGED_ANEW = {Reason.ADDRESS_REFUSED, Reason.CLIP_TOO_LARGE}
"""They say nothing about the clip: another build may allow what this one does not."""


def failed_clip(clips: Sequence[str], rejection: Rejection) -> str:
    """The clip that `Batch.reject_rows` rejected a record for.

    Args:
        clips: The record's clips, at least one.
        rejection: The record's rejection.
    """
    told = _CLIP_NUMBER.match(rejection.detail) if len(clips) > 1 else None
    return clips[int(told[1]) - 1] if told else clips[0]


_CLIP_NUMBER = re.compile(r"clip (\d+) of \d+: ")
_BATCH: TypeAdapter[Batch] = TypeAdapter(Batch)


def save_batch(folder: Path, stage: str, batch: Batch) -> None:
    """Keep a batch as it is after a stage."""
    with scratch_errors():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{stage}.tmp"
        temporary.write_bytes(_BATCH.dump_json(batch))
        temporary.replace(folder / f"{stage}.json")


def load_batch(folder: Path, stage: str) -> Batch:
    """A batch as it was after a stage."""
    return _BATCH.validate_json((folder / f"{stage}.json").read_bytes())


def keys_digest(batch: Batch) -> str:
    """What a batch asks, in 16 hex digits: its cache keys, and rows where clips are unknown."""
    asked = [KEY_VERSION, *(row.cache_key or f"row {row.row}" for row in batch.rows)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Decided:
    """A row's outcome as a segment holds it.

    Attributes:
        row: The row.
        outcome: What became of it.
        reused: The cache held the outcome before this build. False for every row of the shard
            that asks what this build asked: which of them counts as generated is decided when the
            shard is written, by the order of rows (see `persist`).
    """

    row: int
    outcome: Outcome
    reused: bool


_SEGMENT_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("cache_key", pa.string()),
        pa.field("reused", pa.bool_()),
        *OUTCOME_COLUMNS,
        pa.field("clips", HEARD_CLIPS),
    ]
)
_CLIPS_KEY = b"earwitness.clips"
_USAGE_KEY = b"earwitness.engine_time"


SEGMENT_GROUP_ROWS = 4096
"""Rows a row group of a segment: what a reader holds in memory at once."""


_LOOKED_AT_AGAIN = TRANSIENT_REASONS | {Reason.CLIP_MISSING}


def stands(outcome: Outcome) -> bool:
    """Whether an unfinished shard keeps an outcome: no rejection that may have passed by now.

    A missing clip is looked for again, too: its folder may be back.
    """
    return outcome.rejection is None or outcome.rejection.reason not in _LOOKED_AT_AGAIN


def decided_table(decided: Iterable[Decided]) -> pa.Table:
    """Decided rows as Arrow."""
    rows = [
        {
            "row": one.row,
            "cache_key": one.outcome.cache_key,
            "reused": one.reused,
            **outcome_row(one.outcome),
            "clips": heard_clips(one.outcome),
        }
        for one in decided
    ]
    return pa.Table.from_pylist(rows, schema=_SEGMENT_SCHEMA)


def write_segment(
    build: Build,
    path: str,
    decided: list[Decided] | pa.Table,
    clip_records: list[ClipRecord],
    usage: Usage = NO_USAGE,
) -> None:
    """Write decided rows as one segment: the checkpoint."""
    table = decided if isinstance(decided, pa.Table) else decided_table(decided)
    seen = json.dumps([clip_row(clip_record) for clip_record in clip_records])
    used = json.dumps(usage.to_json())
    metadata = {_CLIPS_KEY: seen.encode(), _USAGE_KEY: used.encode()}
    table = table.replace_schema_metadata(metadata)
    build.store.write_bytes(path, parquet_bytes(table, SEGMENT_GROUP_ROWS))


def resolved_path(shard: int) -> str:
    """The segment of what a shard's first resolve decided."""
    return f"{work_path(shard)}/resolved.parquet"


def clips_path(shard: int) -> str:
    """What earlier builds know of a shard's clips, as its first resolve found it."""
    return f"{work_path(shard)}/clips.parquet"


def write_resolved(
    build: Build,
    shard: int,
    decided: list[Decided] | pa.Table,
    clips: Iterable[pa.Table] = (),
    usage: Usage = NO_USAGE,
) -> None:
    """Write what a shard's first resolve found; the segment last: its batches are frozen then.

    Args:
        build: The build.
        shard: Number of the shard.
        decided: The rows that are decided.
        clips: What is known of the shard's clips.
        usage: Engine time.
    """
    known = pa.concat_tables([clip_table([]), *clips]).combine_chunks()
    build.store.write_bytes(clips_path(shard), parquet_bytes(known, SEGMENT_GROUP_ROWS))
    write_segment(build, resolved_path(shard), decided, [], usage)


class Segment:
    """A stored segment, read a row group at a time.

    Args:
        build: The build it is of.
        path: Its path inside the build.

    Attributes:
        rows: Rows of each row group, ascending.
    """

    def __init__(self, build: Build, path: str) -> None:
        self._build = build
        self._path = path
        with build.store.open(path) as file:
            parquet = pq.ParquetFile(file)
            self._metadata = dict(parquet.metadata.metadata or {})
            groups = range(parquet.num_row_groups)
            columns = [parquet.read_row_group(group, ["row", "reason"]) for group in groups]
        self.rows = [cast("list[int]", column["row"].to_pylist()) for column in columns]
        self._reasons = [reason for column in columns for reason in column["reason"].to_pylist()]

    @property
    def answered(self) -> int:
        """How many of the rows have an answer."""
        return self._reasons.count(None)

    @property
    def rejected(self) -> int:
        """How many of the rows have none."""
        return len(self._reasons) - self.answered

    def settled(self) -> Iterator[tuple[int, bool]]:
        """Each row, and whether its outcome stands: see `stands`."""
        for row, reason in zip(itertools.chain(*self.rows), self._reasons, strict=True):
            yield row, reason not in _LOOKED_AT_AGAIN

    def keys(self) -> list[str]:
        """Cache keys of the rows whose outcome stands."""
        with self._build.store.open(self._path) as file:
            keys = pq.ParquetFile(file).read(["cache_key"])["cache_key"].to_pylist()
        settled = zip(keys, self.settled(), strict=True)
        return [key for key, (_, stands) in settled if key and stands]

    def strikes(self) -> dict[str, int]:
        """Strikes of the records that have some, by cache key."""
        if Reason.ENGINE_DIED not in self._reasons:
            return {}
        with self._build.store.open(self._path) as file:
            table = pq.ParquetFile(file).read(["cache_key", "strikes"])
        return {row["cache_key"]: row["strikes"] for row in table.to_pylist() if row["strikes"]}

    def read_group(self, group: int) -> list[Decided]:
        """The decided rows of one row group."""
        with self._build.store.open(self._path) as file:
            table = pq.ParquetFile(file).read_row_group(group)
        return [
            Decided(row["row"], outcome_from_row(row["cache_key"], row), row["reused"])
            for row in table.to_pylist()
        ]

    def decided(self) -> Iterator[Decided]:
        """All decided rows, a row group in memory at a time."""
        for group in range(len(self.rows)):
            yield from self.read_group(group)

    @property
    def usage(self) -> Usage:
        """The engine time that is kept with the batch."""
        found = self._metadata.get(_USAGE_KEY)
        return Usage.from_json(json.loads(found)) if found else NO_USAGE

    def clip_records(self) -> list[ClipRecord]:
        """What the batch's fetches told of its clips."""
        return [clip_from_row(row) for row in json.loads(self._metadata[_CLIPS_KEY])]

    def take_clips(self) -> list[ClipRecord]:
        """The same, once: a shard's joined segments hold them all, and they are what is large."""
        found = self.clip_records()
        self._metadata[_CLIPS_KEY] = b"[]"
        return found
