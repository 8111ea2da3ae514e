"""Resolve: which of a shard's records are answered already, and how the rest is cut into batches.

The first resolve of a shard freezes its batches under `work/`, so that a retry finds the finished
ones again by name; only what is new in a retry (records whose rejection was transient) forms
further batches. Rows are read in chunks: a shard's size does not show in memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.audio.facts import are_current, judge
from earwitness.audio.fetch import stat_clips
from earwitness.builds.batch import (
    SEGMENT_GROUP_ROWS,
    Batch,
    BatchRef,
    ClipState,
    Decided,
    RowState,
    Segment,
    clips_path,
    decided_table,
    missing_clip,
    resolved_path,
    save_batch,
    write_resolved,
)
from earwitness.builds.failures import check_missing, most_missing
from earwitness.builds.layout import shard_path, work_path
from earwitness.builds.sources import clips_of
from earwitness.builds.stages import key_rows, recall_rows
from earwitness.cache.tables import (
    ClipRecord,
    clip_from_row,
    clip_table,
    uri_key,
)
from earwitness.errors import BuildDamagedError
from earwitness.manifest.planned import parse_asked, parse_clips, parse_plan_line
from earwitness.records import Reason, Rejection, Stage, Stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from earwitness.builds.layout import Build
    from earwitness.records import PlannedRow
    from earwitness.runtime import Runtime, ShardMemory
    from earwitness.settings import AudioSettings

    Stamps = dict[str, Stamp | Rejection | None]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolved:
    """What resolve found; small enough to be a task's result.

    Attributes:
        rows: Records of the shard.
        reused: Of them, answers that were in the cache.
        rejected: Of them, rejected already (by the plan, remembered, or by an earlier attempt).
        generated: Of them, answered by an earlier attempt at this shard.
        clips: Distinct clips of the rows that were not decided by what is known: those that have
            to be fetched, finished batches' included.
        finished: Batches whose segment exists from an earlier attempt.
        batches: Batches to do.
    """

    rows: int
    reused: int
    rejected: int
    generated: int = 0
    clips: int = 0
    finished: list[BatchRef] = field(default_factory=list)
    batches: list[BatchRef] = field(default_factory=list)


def read_shard(build: Build, shard: int) -> Iterator[PlannedRow]:
    """The planned rows of a shard, in order; see `read_lines`."""
    return read_lines(build, shard, parse_plan_line)


def read_lines(build: Build, shard: int, parse: Callable[[bytes], T]) -> Iterator[T]:
    """What a shard's planned rows hold, in order.

    Args:
        build: A planned build.
        shard: Number of the shard.
        parse: What makes of a line what is wanted of it.

    Raises:
        BuildDamagedError: After the last row: they are not the ones that were planned.
    """
    digest = hashlib.sha256()
    with build.store.open(shard_path(shard)) as file:
        for line in file:
            digest.update(line)
            yield parse(line)
    if digest.hexdigest() != build.plan.shards[shard].sha256:
        raise BuildDamagedError(
            f"{build.store.uri(shard_path(shard))} was changed after the build was planned: "
            "start another build with --new"
        )


def resolve_shard(runtime: Runtime, build: Build, shard: int) -> Resolved:
    """Find out what is left to do in a shard and lay its batches out in scratch.

    Args:
        runtime: Its loop does the storage calls; its scratch takes the batches.
        build: The build.
        shard: Number of the shard.

    Returns:
        Counts and references of batches.

    Raises:
        StorageUnavailableError: Storage does not answer now.
        CredentialsError: Storage refused the credentials themselves.
        ShardFailedError: Most of the shard's clips are missing; nothing is decided.
    """
    if build.store.exists(resolved_path(shard)):
        return _resume(runtime, build, shard)
    uris = dict.fromkeys(chain.from_iterable(read_lines(build, shard, parse_clips)))
    stamps: Stamps = runtime.run(stat_clips(list(uris), access=runtime.access))
    memory = _expect(runtime, build, shard, len(uris))
    missing = [uri for uri, stamp in stamps.items() if _is_missing(stamp)]
    known = _known_clips(build, shard, missing, stamps)
    newly_missing = [uri for uri in missing if uri not in known or not known[uri].missing]
    check_missing(newly_missing, memory.clips, memory.most_missing or 0)
    batches = _Batches(runtime, BatchRef(build.uri, shard, 0, 0), _batch_rows(build))
    tables: list[pa.Table] = []
    clips = _KnownClips()
    asked = (row for row in read_lines(build, shard, parse_asked) if row.rejection is None)
    while chunk := list(islice(asked, SEGMENT_GROUP_ROWS)):
        batch = _as_batch(chunk)
        known = _known_clips(build, shard, batch.clips, stamps)
        clips.add(batch.clips, known, stamps)
        _recognise(build, batch, stamps, known)
        batch.reject_rows(build.plan.settings.max_tokens)
        recall_rows(build, key_rows(batch, build.plan.question_digest), shard)
        batches.add(batch)
        tables.append(
            decided_table(
                Decided(row.row, row.outcome, row.reused)
                for row in batch.rows
                if row.outcome is not None
            )
        )
    batches.flush()
    parts = json.dumps(batches.parts).encode()
    build.store.write_bytes(f"{work_path(shard)}/batches.json", parts)
    decided = pa.concat_tables([decided_table([]), *tables]).combine_chunks()
    with runtime.usage() as usage:  # next to nothing, but it says whose attempt this is
        write_resolved(build, shard, decided, clips.tables, usage)
    return _resolved(build, shard, [], batches.refs, len(batches.clips))


def _expect(runtime: Runtime, build: Build, shard: int, clips: int) -> ShardMemory:
    """Note how many clips a shard has, and how many of them may be missing."""
    memory = runtime.memory(build.uri, shard)
    whole = len(build.plan.shards) == 1
    memory.clips = clips
    memory.most_missing = most_missing(clips, build.gates.max_rejected, whole=whole)
    return memory


def _is_missing(stamp: Stamp | Rejection | None) -> bool:
    return isinstance(stamp, Rejection) and stamp.reason is Reason.CLIP_MISSING


def _known_clips(
    build: Build, shard: int, uris: Iterable[str], stamps: Stamps
) -> dict[str, ClipRecord]:
    """What earlier builds know of clips: the one that saw them as they are now counts first."""
    keys = {uri_key(uri): uri for uri in uris}

    def same(row: dict[str, Any]) -> bool:
        stamp = stamps[row["uri"]]
        now = str(stamp) if isinstance(stamp, Stamp) else ""
        return bool(row["stamp"] == now) or _is_missing(stamp)

    found = clips_of(build).find(keys, shard, fits=same)
    return {keys[key]: clip_from_row(row) for key, row in found.items()}


class _KnownClips:
    """Collects what is known of a shard's clips before any is fetched: each clip once.

    A clip that no build knows has its stamp alone: a retry of the shard does not ask again.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.tables: list[pa.Table] = []

    def add(self, uris: Iterable[str], known: dict[str, ClipRecord], stamps: Stamps) -> None:
        new = [uri for uri in uris if uri not in self._seen]
        self._seen.update(new)
        found = []
        for uri in new:
            if _is_missing(stamps[uri]):
                found.append(missing_clip(uri, known.get(uri)))
            elif uri in known:
                found.append(replace(known[uri], missing=False))
            elif isinstance(stamp := stamps[uri], Stamp):
                found.append(ClipRecord(uri, str(stamp), None))
        self.tables.append(clip_table(found))


class _Batches:
    """Cuts the records left into batches and writes each to scratch, ready to be fetched."""

    def __init__(self, runtime: Runtime, of: BatchRef, size: int) -> None:
        self._runtime = runtime
        self._of = of
        self._size = size
        self._rows: list[RowState] = []
        self._clips: dict[str, ClipState] = {}
        self.clips: set[str] = set()
        self.parts: list[list[int]] = []
        self.refs: list[BatchRef] = []

    def add(self, batch: Batch) -> None:
        for row in batch.open_rows():
            self._rows.append(RowState(row.row, row.clips, row.messages))
            self.clips.update(row.clips)
            for uri in row.clips:
                known = batch.clips[uri]
                self._clips[uri] = ClipState(uri, known.stamp, seen=known.seen)
            if len(self._rows) == self._size:
                self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        self.parts.append([row.row for row in self._rows])
        number = len(self.refs)
        self.refs.append(_lay_out(self._runtime, self._of, number, Batch(self._rows, self._clips)))
        self._rows, self._clips = [], {}


def _resume(runtime: Runtime, build: Build, shard: int) -> Resolved:
    """Take up a shard whose batches were frozen by an earlier attempt."""
    work = work_path(shard)
    parts: list[list[int]] = json.loads(build.store.read_bytes(f"{work}/batches.json"))
    memory = runtime.memory(build.uri, shard)
    finished: dict[int, BatchRef] = {}
    asked: dict[int, bool] = {}
    answered = 0
    for path in segment_paths(build, shard):
        number, digest = path.rpartition("/")[2].removesuffix(".parquet").split("-")[1:]
        segment = Segment(build, path)
        rows = list(segment.settled())
        memory.answered.update(dict.fromkeys(map(bytes.fromhex, segment.keys()), path))
        memory.strikes.update(segment.strikes())
        finished[int(number)] = BatchRef(build.uri, shard, int(number), len(rows), digest)
        answered += segment.answered
        for row, stands in rows:
            asked[row] = asked.get(row, False) or stands
    again = sorted(row for row, stands in asked.items() if not stands)
    todo = {number: part for number, part in enumerate(parts) if number not in finished}
    size, last = _batch_rows(build), max([len(parts) - 1, *finished])
    for count, start in enumerate(range(0, len(again), size), start=1):
        todo[last + count] = again[start : start + size]
    numbers = set(chain.from_iterable(parts))
    clips: set[str] = set()
    named: set[str] = set()

    def planned() -> Iterator[PlannedRow]:
        for row in read_lines(build, shard, parse_asked):
            named.update(row.clips)
            if row.row in numbers:
                clips.update(row.clips)
            yield row

    with build.store.open(clips_path(shard)) as file:
        known = {row["uri"]: row for row in pq.ParquetFile(file).read().to_pylist()}
    refs = _gather(runtime, BatchRef(build.uri, shard, 0, 0), planned(), todo, known)
    _expect(runtime, build, shard, len(named))
    found = _resolved(build, shard, list(finished.values()), refs, len(clips))
    refused = sum(asked.values()) - answered
    return replace(found, generated=answered, rejected=found.rejected + refused)


def _resolved(
    build: Build, shard: int, finished: list[BatchRef], batches: list[BatchRef], clips: int
) -> Resolved:
    found = Segment(build, resolved_path(shard))
    planned = build.plan.shards[shard]
    rejected = planned.rejected + found.rejected
    return Resolved(planned.rows, found.answered, rejected, 0, clips, finished, batches)


def _gather(
    runtime: Runtime,
    of: BatchRef,
    rows: Iterable[PlannedRow],
    todo: dict[int, list[int]],
    known: dict[str, dict[str, Any]],
) -> list[BatchRef]:
    """Lay out the batches that are left; each is written as soon as its last row was read."""
    home = {row: number for number, part in todo.items() for row in part}
    waiting: dict[int, list[PlannedRow]] = {number: [] for number in todo}
    refs = []
    for row in rows:
        number = home.get(row.row)
        if number is None:
            continue
        waiting[number].append(row)
        if len(waiting[number]) == len(todo[number]):
            batch = _as_batch(waiting.pop(number))
            for uri, clip in batch.clips.items():
                if uri in known:
                    seen = clip_from_row(known[uri])
                    clip.stamp, clip.seen = seen.stamp, seen
            refs.append(_lay_out(runtime, of, number, batch))
    return sorted(refs, key=lambda ref: ref.batch)


def segment_paths(build: Build, shard: int) -> list[str]:
    """Paths of a shard's batch segments, lowest batch first."""
    return [
        path
        for path in build.store.sizes(work_path(shard))
        if path.rpartition("/")[2].startswith("batch-")
    ]


def _batch_rows(build: Build) -> int:
    return build.plan.settings.layout.batch_rows


def _as_batch(planned: list[PlannedRow]) -> Batch:
    rows = [RowState(row.row, list(row.clips), list(row.messages)) for row in planned]
    return Batch(rows, {uri: ClipState(uri) for row in rows for uri in row.clips})


def _lay_out(runtime: Runtime, of: BatchRef, number: int, batch: Batch) -> BatchRef:
    save_batch(runtime.batch_folder(of.build, of.shard, number), "resolve", batch)
    return replace(of, batch=number, rows=len(batch.rows))


def _recognise(build: Build, batch: Batch, stamps: Stamps, known: dict[str, ClipRecord]) -> None:
    """Give clips seen before what is known of them, and reject those known to be out of reach."""
    policy, again = build.plan.settings.audio, set(build.gates.retry_reasons)
    for uri, clip in batch.clips.items():
        stamp = stamps[uri]
        if isinstance(stamp, Rejection):
            clip.rejection = stamp
            continue
        if stamp is not None:
            clip.stamp = str(stamp)
            clip.rejection = _size_rejection(stamp, policy.max_clip_bytes)
        seen = known.get(uri)
        if seen is not None and clip.rejection is None:
            _recall_clip(clip, seen, policy, again)


def _recall_clip(
    clip: ClipState, seen: ClipRecord, policy: AudioSettings, again: Collection[str]
) -> None:
    """Take what an earlier build knows of a clip, as far as it holds now."""
    same = seen.stamp == clip.stamp
    if seen.rejection is not None:
        if same and seen.rejection.reason not in again:
            clip.rejection = seen.rejection
        return
    if seen.facts is None or not are_current(seen.facts):
        return
    rejection = judge(seen.facts, policy)
    if rejection is not None and rejection.reason in again:
        return
    clip.seen = seen
    # without a stamp nobody knows whether the bytes are still the same
    if same and clip.stamp:
        clip.sha256 = seen.sha256
        clip.learn(seen.facts, policy)


def _size_rejection(stamp: Stamp, limit: int) -> Rejection | None:
    if stamp.size_bytes == 0:
        return Rejection(Stage.RESOLVE, Reason.CLIP_EMPTY, "the clip is empty (0 bytes)")
    if stamp.size_bytes > limit:
        return Rejection(
            Stage.RESOLVE,
            Reason.CLIP_TOO_LARGE,
            f"the clip has {stamp.size_bytes:,} bytes, and only {limit:,} are allowed "
            "(audio.max_clip_bytes)",
        )
    return None
