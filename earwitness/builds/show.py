"""What became of a build: one row, all rows in order, and how far it is."""

from __future__ import annotations

import io
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from earwitness.builds.batch import Segment, resolved_path
from earwitness.builds.layout import Counts
from earwitness.builds.lease import lease_holder, told_holder
from earwitness.builds.resolve import read_shard, segment_paths
from earwitness.cache.tables import heard_clips
from earwitness.errors import SettingsError
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.builds.batch import Decided
    from earwitness.builds.layout import Build, Receipt
    from earwitness.records import Json, Message, PlannedRow


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of a row.

    Attributes:
        row: Position in the manifest.
        answer: The model's text, None where there is none.
        rejection: Why there is none; None while the row is open.
        provenance: Where the answer comes from: tokens, clips, cache key.
    """

    row: int
    answer: str | None = None
    rejection: Rejection | None = None
    provenance: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row as planned, and what became of it.

    Attributes:
        planned: The row of the frozen plan.
        result: Its outcome.
        shard: The shard it is in.
    """

    planned: PlannedRow
    result: RowResult
    shard: int


def show_row(build: Build, row: int) -> ShownRow:
    """Everything known of one row of a build, finished or not.

    Args:
        build: A planned build.
        row: Position in the manifest, from 0.

    Raises:
        SettingsError: The build has no such row.
    """
    rows = build.plan.rows
    if not 0 <= row < rows:
        raise SettingsError(f"{build.id} has rows 0 to {rows - 1:,}, and no row {row:,}")
    shards = build.plan.shards
    shard = next(n for n, one in enumerate(shards) if row < one.first_row + one.rows)
    planned = next(islice(read_shard(build, shard), row - shards[shard].first_row, None))
    receipt = build.receipt(shard)
    if planned.rejection is not None:
        result = RowResult(row, rejection=planned.rejection)
    elif receipt is not None:
        result = next(one for one in finished_rows(build, receipt) if one.row == row)
    else:
        result = _unfinished(build, shard).get(row, RowResult(row))
    return ShownRow(planned, result, shard)


def finished_rows(build: Build, receipt: Receipt) -> list[RowResult]:
    """All rows of a finished shard, in order.

    Args:
        build: The build.
        receipt: The shard's receipt.
    """
    column = build.plan.settings.layout.provenance_column
    answer = build.plan.settings.layout.answer_column
    answered = [
        RowResult(record[column]["row"], record[answer], None, record[column])
        for record in _data(build, receipt, [answer, column])
    ]
    rejected = []
    for record in _lines(build, receipt, "rejected/"):
        why = record[column]
        rejection = Rejection(Stage(why["stage"]), Reason(why["reason"]), why["detail"])
        rejected.append(RowResult(why["row"], rejection=rejection))
    return sorted([*answered, *rejected], key=lambda one: one.row)


def all_rows(build: Build) -> Iterator[RowResult]:
    """The rows of all finished shards, in order."""
    for number in sorted(build.done_shards()):
        receipt = build.receipt(number)
        if receipt is not None:
            yield from finished_rows(build, receipt)


def read_planned(build: Build) -> Iterator[PlannedRow]:
    """The planned rows of all finished shards, in order."""
    for number in sorted(build.done_shards()):
        yield from read_shard(build, number)


def open_outcomes(build: Build, shard: int) -> list[Decided]:
    """What is decided of a shard that is not finished; an outcome that will pass comes last."""
    found = [one for segment in open_segments(build, shard) for one in segment.decided()]
    return sorted(found, key=lambda one: _passing(one.outcome.rejection))


def open_segments(build: Build, shard: int) -> Iterator[Segment]:
    """The checkpoints of a shard that is not finished."""
    for path in [resolved_path(shard), *segment_paths(build, shard)]:
        try:
            yield Segment(build, path)
        except FileNotFoundError:
            continue  # not resolved yet, or finished just now


def question_of(messages: tuple[Message, ...]) -> str:
    """The text of the last turn, clips left out."""
    if not messages:
        return ""
    return " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")


def _passing(rejection: Rejection | None) -> bool:
    return rejection is not None and rejection.transient


def _unfinished(build: Build, shard: int) -> dict[int, RowResult]:
    results: dict[int, RowResult] = {}
    for one in open_outcomes(build, shard):
        said = one.outcome.answer
        provenance: Json = {"cache_key": one.outcome.cache_key}
        if said is not None:
            provenance |= {
                "finish_reason": said.finish_reason,
                "prompt_tokens": said.prompt_tokens,
                "completion_tokens": said.completion_tokens,
            }
        provenance["clips"] = heard_clips(one.outcome)
        text = said.text if said is not None else None
        results.setdefault(one.row, RowResult(one.row, text, one.outcome.rejection, provenance))
    return results


def _data(build: Build, receipt: Receipt, columns: list[str]) -> Iterator[dict[str, Any]]:
    parquet = [file.path for file in receipt.files if file.path.startswith("data/")]
    if not parquet:
        yield from _lines(build, receipt, "jsonl/")
    for path in parquet:
        data = io.BytesIO(build.store.read_bytes(path))
        yield from pq.read_table(data, columns=columns).to_pylist()


def _lines(build: Build, receipt: Receipt, folder: str) -> Iterator[dict[str, Any]]:
    for file in receipt.files:
        if file.path.startswith(folder):
            for line in build.store.read_bytes(file.path).split(b"\n"):
                if line:
                    yield json.loads(line)


_READERS = 16
PLANNED_OUT = "rejected in the manifest"
"""Stands for the reasons of an unfinished shard's lines, which are counted but not read."""


@dataclass(frozen=True, slots=True)
class Status:
    """How far a build is.

    Attributes:
        published: True once it is published.
        holder: Who works on it now, for a person; empty: nobody.
        shards: How many there are.
        done: How many are finished.
        started: Numbers of the unfinished ones that hold outcomes already.
        waiting: Numbers of the ones nobody has touched.
        rows: Rows of the manifest.
        counts: The ledger so far: finished shards, and what the others know.
    """

    published: bool
    holder: str
    shards: int
    done: int
    started: tuple[int, ...]
    waiting: tuple[int, ...]
    rows: int
    counts: Counts


def build_status(build: Build) -> Status:
    """How far a build is, from its receipts and checkpoints.

    Args:
        build: A planned build.
    """
    plan = build.plan
    missing = build.missing_shards()
    done = sorted(set(range(len(plan.shards))).difference(missing))
    worked = {path.split("/")[1] for path in build.store.sizes("work")}
    started = [number for number in missing if f"shard-{number:05d}" in worked]
    with ThreadPoolExecutor(_READERS) as pool:
        receipts = pool.map(build.receipt, done)
        counts = [receipt.counts for receipt in receipts if receipt is not None]
        counts += pool.map(lambda number: _so_far(build, number), started)
    return Status(
        published=build.published,
        holder=_holder(build),
        shards=len(plan.shards),
        done=len(done),
        started=tuple(started),
        waiting=tuple(sorted(set(missing).difference(started))),
        rows=plan.rows,
        counts=sum(counts, Counts()),
    )


def _holder(build: Build) -> str:
    held = lease_holder(build)
    return "" if held is None else told_holder(held)


def _so_far(build: Build, shard: int) -> Counts:
    """The ledger of a shard under way: only decided rows count."""
    decided = {one.row: one for one in reversed(open_outcomes(build, shard))}.values()
    reasons = Counter(
        str(one.outcome.rejection.reason) for one in decided if one.outcome.rejection is not None
    )
    planned_out = build.plan.shards[shard].rejected
    if planned_out:
        reasons[PLANNED_OUT] = planned_out
    answers = [one for one in decided if one.outcome.answer is not None]
    said = [one.outcome.answer for one in answers if one.outcome.answer is not None]
    generated = len({one.outcome.cache_key for one in answers if not one.reused})
    return Counts(
        rows=len(decided) + planned_out,
        answered=len(answers),
        generated=generated,
        reused=len(answers) - generated,
        rejected=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        audio_s=sum(clip.heard_s for one in answers for clip in one.outcome.clips),
        prompt_tokens=sum(answer.prompt_tokens for answer in said),
        completion_tokens=sum(answer.completion_tokens for answer in said),
    )
