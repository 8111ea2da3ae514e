"""Persist: join a shard's plan, segments and reused outcomes into its files, receipt last.

Rows are joined in chunks and written as they come: a shard's size does not show in memory.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from earwitness.audio.facts import sound_of
from earwitness.builds.account import Account, total_usage
from earwitness.builds.account import generated as cost_of
from earwitness.builds.batch import (
    Decided,
    Segment,
    clips_path,
    failed_clip,
    resolved_path,
    stands,
)
from earwitness.builds.failures import too_many_failed
from earwitness.builds.layout import Counts, Receipt, receipt_path
from earwitness.builds.resolve import read_shard, segment_paths
from earwitness.builds.sources import outcomes_of
from earwitness.builds.writers import RejectionsFile, ShardFile, TableFile, data_files
from earwitness.cache.tables import (
    CLIP_SCHEMA,
    OUTCOME_SCHEMA,
    clip_from_row,
    clip_table,
    outcome_from_row,
    outcome_table,
    uri_key,
)
from earwitness.engine.usage import NO_USAGE
from earwitness.errors import BuildDamagedError, LedgerError, ShardFailedError
from earwitness.heap import trim_heap
from earwitness.identity import cache_key
from earwitness.records import Stage
from earwitness.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from earwitness.builds.layout import Build, StoredFile
    from earwitness.engine.usage import Usage
    from earwitness.records import Message, Outcome, PlannedRow, Rejection

CHUNK_ROWS = 1024


def persist_shard(
    build: Build,
    shard: int,
    *,
    segments: Iterable[str] = (),
    engine: str = "",
    worker: str = "",
    usage: Usage = NO_USAGE,
) -> Receipt:
    """Write a finished shard's data, rejections, outcomes and clips, and last its receipt.

    Args:
        build: The build.
        shard: A shard all of whose batches have their segments.
        segments: Paths of these, as far as known; a listing might not show the last ones yet.
        engine: Version of the engine that was asked; empty when nothing was.
        worker: Name of the worker that did the shard; empty without one.
        usage: Engine time that no segment holds yet.

    Returns:
        The receipt; the one that is there already where another attempt was first.

    Raises:
        ShardFailedError: Too many clips failed for reasons that will pass.
        LedgerError: A row has no outcome, or two.
    """
    done = build.receipt(shard)
    if done is not None:
        return done
    trim_heap()
    with scratch_folder() as folder:
        join = _Join(build, shard, segments)
        ledger = _Ledger(join.resolved)
        known = _clips_to_keep(build, shard, join.segments)
        clips = TableFile(build, shard, folder, "clips", CLIP_SCHEMA)
        clips.add(known)
        trim_heap()
        outcomes_file = TableFile(build, shard, folder, "outcomes", OUTCOME_SCHEMA)
        outcomes = _Outcomes(outcomes_file)
        data = data_files(build, shard, folder)
        rejections = RejectionsFile(build, shard, folder)
        for chunk in join.chunks():
            ledger.count(chunk, outcomes.add(chunk))
            _write(chunk, data, rejections)
        outcomes.carry_over(build, shard, known)
        ledger.check_passing()
        if not ledger.counts.balanced:
            raise LedgerError(f"the counts of shard {shard} do not add up: {ledger.counts}")
        files: list[StoredFile] = [file.store() for file in data]
        if rejections.rows:
            files.append(rejections.store())
        files += [outcomes_file.store(), clips.store()]
    receipt = Receipt(
        shard=shard,
        counts=ledger.counts,
        files=tuple(files),
        engine=engine,
        worker=worker,
        account=ledger.asked + total_usage([*(one.usage for one in join.segments), usage]),
    )
    if not build.published:
        build.store.write_bytes(receipt_path(shard), receipt.to_bytes())
    _withdraw(build, receipt)
    return receipt


def _withdraw(build: Build, receipt: Receipt) -> None:
    """Take back files written too late: a build once published has only those it names.

    Publishing deletes what no receipt names, and once more after `build.json` is there; whoever
    writes later than that finds the build published here.
    """
    if build.published:
        named = {file["path"] for file in build.facts()["files"]}
        build.store.delete(file.path for file in receipt.files if file.path not in named)


Joined = list[tuple["PlannedRow", "Decided | None"]]


class _Join:
    """A shard's planned rows with their outcomes, in order, a chunk at a time."""

    def __init__(self, build: Build, shard: int, segments: Iterable[str]) -> None:
        batches = sorted({*segments, *segment_paths(build, shard)})
        paths = [resolved_path(shard), *batches]
        self.segments = [Segment(build, path) for path in paths]
        # rows that were decided without fetching a clip
        self.resolved = set(chain.from_iterable(self.segments[0].rows))
        self._planned = read_shard(build, shard)
        # a row group covers a range of rows; ranges of one attempt's batches do not overlap, so
        # that few groups are in memory at once
        self._groups = [
            (min(rows), max(rows), segment, group)
            for segment in self.segments
            for group, rows in enumerate(segment.rows)
            if rows
        ]
        self._read: dict[int, list[Decided]] = {}

    def chunks(self) -> Iterator[Joined]:
        while rows := list(islice(self._planned, CHUNK_ROWS)):
            decided = self._between(rows[0].row, rows[-1].row)
            missing = [r.row for r in rows if r.rejection is None and r.row not in decided]
            if missing:
                raise BuildDamagedError(
                    f"row {missing[0]} has no outcome, because its file under work/ is missing: "
                    "run the build again"
                )
            yield [(row, decided.get(row.row)) for row in rows]

    def _between(self, first: int, last: int) -> dict[int, Decided]:
        """Outcomes of a range of rows; one that stands beats one that may have passed."""
        found: dict[int, Decided] = {}
        for number, (low, high, segment, group) in enumerate(self._groups):
            if low > last or high < first:
                self._read.pop(number, None)
                continue
            if number not in self._read:
                self._read[number] = segment.read_group(group)
            for one in self._read[number]:
                earlier = found.get(one.row)
                if first <= one.row <= last and (earlier is None or not stands(earlier.outcome)):
                    found[one.row] = one
        return found


class _Ledger:
    """Counts rows as they are written.

    Args:
        resolved: Rows that were decided without fetching a clip.
    """

    def __init__(self, resolved: Collection[int]) -> None:
        self.counts = Counts()
        self.asked = Account()
        self._resolved = resolved
        self._passing: Counter[str] = Counter()
        self._clips: set[str] = set()
        self._failed_clips: set[str] = set()
        self._rows = self._failed_rows = 0

    def count(self, chunk: Joined, fresh: list[Outcome]) -> None:
        answers = [one for row, one in chunk if one and _answered(row, one)]
        rejections = [rejection for row, one in chunk if (rejection := _rejection(row, one))]
        said = [one.outcome.answer for one in answers if one.outcome.answer]
        generated = [outcome for outcome in fresh if outcome.answer is not None]
        self._count_passing(chunk)
        self.counts += Counts(
            rows=len(chunk),
            answered=len(answers),
            generated=len(generated),
            reused=len(answers) - len(generated),
            rejected=len(rejections),
            transient=sum(rejection.transient for rejection in rejections),
            reasons=dict(Counter(str(rejection.reason) for rejection in rejections)),
            cut_by_max_tokens=sum(answer.finish_reason == "length" for answer in said),
            audio_s=sum(clip.heard_s for one in answers for clip in one.outcome.clips),
            prompt_tokens=sum(answer.prompt_tokens for answer in said),
            completion_tokens=sum(answer.completion_tokens for answer in said),
        )
        self.asked += cost_of(generated)

    def _count_passing(self, chunk: Joined) -> None:
        """Count clips that had to be fetched, questions about them, and what failed of either."""
        for row, one in chunk:
            if one is None or row.row in self._resolved:
                continue
            self._rows += 1
            self._clips.update(row.clips)
            why = one.outcome.rejection
            if why is None or not why.transient:
                continue
            self._passing[str(why.reason)] += 1
            if why.stage is Stage.GENERATE:
                self._failed_rows += 1
            else:
                self._failed_clips.add(failed_clip(row.clips, why))

    def check_passing(self) -> None:
        """Fail the shard when too much of it failed for transient reasons.

        Failed clips are compared with all clips, and failed requests with all rows.
        """
        clips, rows = len(self._clips), self._rows
        failed_clips = len(self._failed_clips)
        told = ""
        if too_many_failed(failed_clips, clips):
            told = f"{failed_clips:,} of {clips:,} clips"
        elif too_many_failed(self._failed_rows, rows):
            told = f"{self._failed_rows:,} of {rows:,} rows"
        if told:
            reasons = ", ".join(f"{name} {count}" for name, count in self._passing.most_common())
            raise ShardFailedError(
                f"{told} failed because of transient faults ({reasons}); "
                "none of them is rejected: run the build again, and only these are asked again"
            )


class _Outcomes:
    """The outcomes that a shard uses, each key once, written as its outcomes file.

    Of the rows that ask the same, the first one is the one that counts as generated, whichever
    of them was asked, and in how many attempts.
    """

    def __init__(self, file: TableFile) -> None:
        self._file = file
        self._written: set[bytes] = set()
        self._fresh: set[bytes] = set()
        self._struck: dict[bytes, Outcome] = {}
        self._open: list[tuple[tuple[str, ...], tuple[Message, ...]]] = []

    def add(self, chunk: Joined) -> list[Outcome]:
        """Write what a chunk uses.

        Args:
            chunk: Rows in order, none of which came before.

        Returns:
            The outcomes that are not reused.
        """
        fresh, used = [], []
        for row, one in chunk:
            if one is None:
                continue
            outcome = one.outcome
            key = bytes.fromhex(outcome.cache_key)
            if not stands(outcome):
                if outcome.rejection and outcome.rejection.strikes:
                    self._struck[key] = outcome
                else:
                    self._open.append((row.clips, row.messages))
            elif key:
                if not one.reused and key not in self._fresh:
                    self._fresh.add(key)
                    fresh.append(outcome)
                if key not in self._written:
                    self._written.add(key)
                    used.append(outcome)
        self._file.add(outcome_table(used))
        return fresh

    def carry_over(self, build: Build, shard: int, clips: pa.Table) -> None:
        """Write what the next build needs to know of rows that nothing stands for now.

        These are the strikes of records, and what earlier builds have of rows whose clips are
        missing, or that failed for reasons that will pass.

        Args:
            build: The build.
            shard: Number of the shard.
            clips: What is known of the shard's clips.
        """
        keys = set(_keys_of(build, self._open, clips)) - self._written - self._struck.keys()
        earlier = outcomes_of(build).find(keys, shard)
        left = {key: one for key, one in self._struck.items() if key not in self._written}
        left |= {key: outcome_from_row(key.hex(), row) for key, row in earlier.items()}
        self._file.add(outcome_table(left.values()))


def _keys_of(
    build: Build, rows: list[tuple[tuple[str, ...], tuple[Message, ...]]], clips: pa.Table
) -> Iterator[bytes]:
    """The cache keys of rows, as far as the sounds of their clips are known."""
    wanted = pa.array({uri_key(uri) for uris, _ in rows for uri in uris}, pa.binary(32))
    known = clips.filter(pc.is_in(clips["key"], wanted)).to_pylist()
    facts = {row["uri"]: clip_from_row(row).facts for row in known}
    policy, question = build.plan.settings.audio, build.plan.question_digest
    for uris, messages in rows:
        heard = [sound_of(one, policy) for uri in uris if (one := facts.get(uri)) is not None]
        sounds = [sound.pcm_sha256 for sound in heard if sound is not None]
        if len(sounds) == len(uris):
            yield bytes.fromhex(cache_key(sounds, messages, question))


def _clips_to_keep(build: Build, shard: int, segments: Iterable[Segment]) -> pa.Table:
    """What is known of a shard's clips, by key: what its batches found, else what was known."""
    with build.store.open(clips_path(shard)) as file:
        tables = [pq.ParquetFile(file).read()]
    tables += [clip_table(one.take_clips()) for one in segments]
    clips = pa.concat_tables(tables)
    known = pc.or_(pc.is_valid(clips["sha256"]), pc.is_valid(clips["reason"]))
    clips = clips.filter(pc.or_(known, clips["missing"]))
    keys = cast("list[bytes]", clips["key"].to_pylist())
    last = {key: at for at, key in enumerate(keys)}
    return clips.take(pa.array([last[key] for key in sorted(last)], pa.int64()))


def _write(chunk: Joined, data: list[ShardFile], rejections: RejectionsFile) -> None:
    answered = [(row, one.outcome) for row, one in chunk if one and _answered(row, one)]
    for file in data:
        file.add(answered)
    rejections.add([(row, why) for row, one in chunk if (why := _rejection(row, one))])


def _answered(row: PlannedRow, one: Decided) -> bool:
    return row.rejection is None and one.outcome.answer is not None


def _rejection(row: PlannedRow, one: Decided | None) -> Rejection | None:
    return row.rejection or (one.outcome.rejection if one else None)
