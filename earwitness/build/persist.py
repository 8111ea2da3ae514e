"""Persist: join a shard's plan, segments and reused outcomes into its files, receipt last.

Rows are joined in chunks and written as they come: a shard's size does not show in memory.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from typing import TYPE_CHECKING

from earwitness.build.account import Account, booked
from earwitness.build.account import generated as cost_of
from earwitness.build.batch import Decided, Segment, failed_clip, stands
from earwitness.build.failures import too_many_failed
from earwitness.build.layout import Counts, Receipt, receipt_path, work_path
from earwitness.build.resolve import read_shard, segment_paths
from earwitness.build.writers import RejectionsFile, ShardFile, data_files
from earwitness.cache.tables import outcome_table, sighting_table
from earwitness.engine.account import NOTHING_BOOKED
from earwitness.errors import BuildDamagedError, LedgerError, ShardFailedError
from earwitness.heap import trim_heap
from earwitness.records import Stage
from earwitness.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from earwitness.build.layout import Build, StoredFile
    from earwitness.cache.writing import SegmentWriter
    from earwitness.engine.account import Booking
    from earwitness.records import Outcome, PlannedRow, Rejection

CHUNK_ROWS = 1024


def persist_shard(
    build: Build,
    shard: int,
    *,
    segments: Iterable[str] = (),
    engine: str = "",
    worker: str = "",
    booking: Booking = NOTHING_BOOKED,
) -> Receipt:
    """Write a finished shard's data, rejections and cache segments, and last its receipt.

    Args:
        build: The build.
        shard: A shard all of whose batches have their segments.
        segments: Paths of these, as far as known; a listing might not show the last ones yet.
        engine: Version of the engine that was asked; empty when nothing was.
        worker: Name of the worker that did the shard; empty without one.
        booking: Engine time that no segment holds yet.

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
    name = build.segment_name(shard)
    with (
        scratch_folder() as folder,
        build.sightings.writer(name) as seen,
        build.outcomes.writer(name) as segment,
    ):
        join = _Join(build, shard, segments)
        ledger = _Ledger(join.resolved)
        for one in join.segments:
            seen.add(sighting_table(one.take_sightings()))
        trim_heap()
        fresh = _FreshOutcomes(segment)
        data = data_files(build, shard, folder)
        rejections = RejectionsFile(build, shard, folder)
        for chunk in join.chunks():
            ledger.count(chunk, fresh.add(chunk))
            _write(chunk, data, rejections)
        fresh.keep_strikes()
        ledger.check_passing()
        if not ledger.counts.balanced:
            raise LedgerError(f"the counts of shard {shard} do not add up: {ledger.counts}")
        files: list[StoredFile] = [file.store() for file in data]
        if rejections.rows:
            files.append(rejections.store())
    receipt = Receipt(
        shard=shard,
        counts=ledger.counts,
        files=tuple(files),
        engine=engine,
        worker=worker,
        account=ledger.asked + booked([*(one.booking for one in join.segments), booking]),
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
        paths = [f"{work_path(shard)}/resolved.parquet", *batches]
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


class _FreshOutcomes:
    """Outcomes that stand and that the cache did not hold before this build; each key once.

    Of the rows that ask the same, the first one is the one that counts as generated, whichever
    of them was asked, and in how many attempts.
    """

    def __init__(self, segment: SegmentWriter) -> None:
        self._segment = segment
        self._seen: set[bytes] = set()
        self._struck: dict[bytes, Outcome] = {}

    def add(self, chunk: Joined) -> list[Outcome]:
        """Keep what is new in a chunk.

        Args:
            chunk: Rows in order, none of which came before.

        Returns:
            What was kept.
        """
        fresh = []
        for _, one in chunk:
            if one is None or one.reused or not one.outcome.cache_key:
                continue
            key = bytes.fromhex(one.outcome.cache_key)
            if _passing(one.outcome):
                if one.outcome.rejection and one.outcome.rejection.strikes:
                    self._struck[key] = one.outcome
            elif key not in self._seen:
                self._seen.add(key)
                fresh.append(one.outcome)
        self._segment.add(outcome_table(fresh))
        return fresh

    def keep_strikes(self) -> None:
        """Keep the strikes of records that have no outcome that stands, for the next build."""
        left = [outcome for key, outcome in self._struck.items() if key not in self._seen]
        self._segment.add(outcome_table(left))


def _write(chunk: Joined, data: list[ShardFile], rejections: RejectionsFile) -> None:
    answered = [(row, one.outcome) for row, one in chunk if one and _answered(row, one)]
    for file in data:
        file.add(answered)
    rejections.add([(row, why) for row, one in chunk if (why := _rejection(row, one))])


def _passing(outcome: Outcome) -> bool:
    return outcome.rejection is not None and outcome.rejection.transient


def _answered(row: PlannedRow, one: Decided) -> bool:
    return row.rejection is None and one.outcome.answer is not None


def _rejection(row: PlannedRow, one: Decided | None) -> Rejection | None:
    return row.rejection or (one.outcome.rejection if one else None)
