"""Resolve: which of a shard's records are answered already, and how the rest is cut into batches.

The first resolve of a shard freezes its batches under `work/`, so that a retry finds the finished
ones again by name; only what is new in a retry (records whose rejection was transient) forms
further batches.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from earwitness.audio.stat import stat_clips
from earwitness.build.batch import (
    Batch,
    BatchRef,
    ClipState,
    Decided,
    RowState,
    read_segment,
    save_batch,
    write_segment,
)
from earwitness.build.layout import shard_mark, shard_path, work_path
from earwitness.build.stages import key_rows, recall_rows
from earwitness.cache.tables import ClipSighting, sighting_from_row, uri_key
from earwitness.errors import BuildDamagedError
from earwitness.manifest.planned import parse_plan_line
from earwitness.records import Reason, Rejection, Stage, Stamp

if TYPE_CHECKING:
    from earwitness.build.layout import Build
    from earwitness.records import PlannedRow
    from earwitness.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Resolved:
    """What resolve found; small enough to be a task's result.

    Attributes:
        rows: Records of the shard.
        reused: Of them, answers that were in the cache.
        rejected: Of them, rejected already (by the plan, or remembered).
        finished: Batches whose segment exists from an earlier attempt.
        batches: Batches to do.
    """

    rows: int
    reused: int
    rejected: int
    finished: list[BatchRef] = field(default_factory=list)
    batches: list[BatchRef] = field(default_factory=list)


def read_shard(build: Build, shard: int) -> list[PlannedRow]:
    """The planned rows of a shard.

    Raises:
        BuildDamagedError: The stored rows are not the ones that were planned.
    """
    data = build.store.read_bytes(shard_path(shard))
    if hashlib.sha256(data).hexdigest() != build.plan.shards[shard].sha256:
        raise BuildDamagedError(f"{build.store.uri(shard_path(shard))} was changed after planning")
    return [parse_plan_line(line) for line in data.split(b"\n") if line]


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
    """
    planned = [row for row in read_shard(build, shard) if row.rejection is None]
    work = work_path(shard)
    path = f"{work}/resolved.parquet"
    if build.store.exists(path):
        return _resume(runtime, build, shard, planned)
    batch = _as_batch(planned)
    stamps = runtime.run(stat_clips(list(batch.clips)))
    _recognise(build, shard, batch, stamps)
    batch.reject_rows(build.plan.settings.max_tokens)
    key_rows_known(batch, build.plan.question_digest)
    recall_rows(build, [row for row in batch.open_rows() if row.cache_key], shard_mark(shard))
    decided = [
        Decided(row.row, row.outcome, row.reused) for row in batch.rows if row.outcome is not None
    ]
    left = [row.row for row in batch.open_rows()]
    size = build.plan.settings.layout.batch_rows
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    build.store.write_bytes(f"{work}/batches.json", json.dumps(parts).encode())
    write_segment(build, path, decided, [])
    refs = _lay_out(runtime, BatchRef(build.uri, shard, 0, 0), batch, dict(enumerate(parts)))
    counts = _counts(build, shard, decided)
    return Resolved(*counts, [], refs)


def _resume(runtime: Runtime, build: Build, shard: int, planned: list[PlannedRow]) -> Resolved:
    """Take up a shard whose batches were frozen by an earlier attempt."""
    work = work_path(shard)
    parts: list[list[int]] = json.loads(build.store.read_bytes(f"{work}/batches.json"))
    decided, _ = read_segment(build, f"{work}/resolved.parquet")
    finished: dict[int, BatchRef] = {}
    settled: set[int] = {one.row for one in decided}
    asked: set[int] = set()
    last = len(parts) - 1
    for path in segment_paths(build, shard):
        number, digest = path.rpartition("/")[2].removesuffix(".parquet").split("-")[1:]
        rows, _ = read_segment(build, path)
        finished[int(number)] = BatchRef(build.uri, shard, int(number), len(rows), digest)
        last = max(last, int(number))
        asked |= {one.row for one in rows}
        settled |= {one.row for one in rows if not _transient(one)}
    again = sorted(asked - settled)
    todo = {n: part for n, part in enumerate(parts) if n not in finished}
    size = build.plan.settings.layout.batch_rows
    for start in range(0, len(again), size):
        last += 1
        todo[last] = again[start : start + size]
    batch = _as_batch(planned)
    refs = _lay_out(runtime, BatchRef(build.uri, shard, 0, 0), batch, todo)
    counts = _counts(build, shard, decided)
    return Resolved(*counts, list(finished.values()), refs)


def segment_paths(build: Build, shard: int) -> list[str]:
    """Paths of a shard's batch segments, oldest batch first."""
    return [
        path
        for path in build.store.sizes(work_path(shard))
        if path.rpartition("/")[2].startswith("batch-")
    ]


def _transient(one: Decided) -> bool:
    return one.outcome.rejection is not None and one.outcome.rejection.transient


def _counts(build: Build, shard: int, decided: list[Decided]) -> tuple[int, int, int]:
    kinds = Counter(one.outcome.answer is not None for one in decided)
    planned_out = build.plan.shards[shard].rejected
    return build.plan.shards[shard].rows, kinds[True], kinds[False] + planned_out


def _as_batch(planned: list[PlannedRow]) -> Batch:
    rows = [RowState(row.row, list(row.clips), list(row.messages)) for row in planned]
    return Batch(rows, {uri: ClipState(uri) for row in rows for uri in row.clips})


def _lay_out(
    runtime: Runtime, of: BatchRef, batch: Batch, parts: dict[int, list[int]]
) -> list[BatchRef]:
    """Write batches to scratch, ready to be fetched: number → rows, out of the whole shard."""
    by_row = {row.row: row for row in batch.rows}
    refs = []
    for number, part in sorted(parts.items()):
        rows = [RowState(row, by_row[row].clips, by_row[row].messages) for row in part]
        uris = {uri for row in rows for uri in row.clips}
        clips = {uri: ClipState(uri, batch.clips[uri].stamp) for uri in sorted(uris)}
        folder = runtime.batch_folder(of.build, of.shard, number)
        save_batch(folder, "resolve", Batch(rows, clips))
        refs.append(replace(of, batch=number, rows=len(rows)))
    return refs


def _recognise(
    build: Build, shard: int, batch: Batch, stamps: dict[str, Stamp | Rejection | None]
) -> None:
    """Give clips seen before their SHA-256, and reject those known to be out of reach."""
    uris = [uri for uri, stamp in stamps.items() if not isinstance(stamp, Rejection)]
    keys = {uri_key(uri): uri for uri in uris}
    again = set(build.gates.retry_reasons)
    known = {
        keys[key]: sighting_from_row(row)
        for key, row in build.sightings.find(list(keys), shard_mark(shard)).items()
    }
    limit = build.plan.settings.audio.max_clip_bytes
    for uri, stamp in stamps.items():
        clip = batch.clips[uri]
        if isinstance(stamp, Rejection):
            clip.rejection = stamp
            continue
        if stamp is not None:
            clip.stamp = str(stamp)
            clip.rejection = _size_rejection(stamp, limit)
        seen: ClipSighting | None = known.get(uri)
        if seen is None or seen.stamp != clip.stamp:
            continue
        if seen.rejection is None:
            clip.sha256 = seen.sha256
        elif seen.rejection.reason not in again:
            clip.rejection = seen.rejection


def _size_rejection(stamp: Stamp, limit: int) -> Rejection | None:
    if stamp.size_bytes == 0:
        return Rejection(Stage.RESOLVE, Reason.CLIP_EMPTY, "the object has 0 bytes")
    if stamp.size_bytes > limit:
        return Rejection(
            Stage.RESOLVE,
            Reason.CLIP_TOO_LARGE,
            f"{stamp.size_bytes:,} bytes, more than audio.max_clip_bytes = {limit:,}",
        )
    return None


def key_rows_known(batch: Batch, question: str) -> None:
    """Key the records whose clips' content is all known without reading them."""
    known = [row for row in batch.open_rows() if all(batch.clips[uri].sha256 for uri in row.clips)]
    key_rows(Batch(known, batch.clips), question)
