"""Persist: join a shard's plan, segments and reused outcomes into its files, receipt last."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from earwitness.build.batch import Decided, read_segment
from earwitness.build.layout import Counts, Receipt, StoredFile, receipt_path, work_path
from earwitness.build.resolve import read_shard, segment_paths
from earwitness.build.stages import FAILED_AT_LEAST, FAILED_SHARE
from earwitness.cache.segments import parquet_bytes
from earwitness.cache.tables import HEARD_CLIPS, outcome_table, sighting_table
from earwitness.errors import BuildDamagedError, LedgerError, ShardFailedError
from earwitness.manifest.fields import OutputFields
from earwitness.settings import Format

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.build.layout import Build
    from earwitness.cache.tables import ClipSighting
    from earwitness.records import Json, Outcome, PlannedRow, Rejection

DATA_GROUP_ROWS = 10_000

PROVENANCE = pa.struct(
    [
        pa.field("row", pa.int64()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("clips", HEARD_CLIPS),
        pa.field("cache_key", pa.string()),
    ]
)
"""The struct beside each answer."""


def persist_shard(build: Build, shard: int) -> Receipt:
    """Write a finished shard's data, rejections and cache segments, and last its receipt.

    Args:
        build: The build.
        shard: A shard all of whose batches have their segments.

    Returns:
        The receipt.

    Raises:
        ShardFailedError: Too many clips failed for reasons that will pass.
        LedgerError: A row has no outcome, or two.
    """
    planned = read_shard(build, shard)
    decided, sightings = _decided(build, shard)
    _check_passing(planned, decided)
    counts = _count(planned, decided)
    if not counts.balanced:
        raise LedgerError(f"shard {shard} does not balance: {counts.model_dump_json()}")
    answered = [(row, decided[row.row]) for row in planned if _answered(row, decided)]
    files = [_write_data(build, shard, fmt, answered) for fmt in _formats(build)]
    rejected = [row for row in planned if not _answered(row, decided)]
    if rejected:
        files.append(_write_rejected(build, shard, rejected, decided))
    _remember(build, shard, decided.values(), sightings)
    receipt = Receipt(shard=shard, counts=counts, files=tuple(files))
    build.store.write_bytes(receipt_path(shard), receipt.to_bytes())
    return receipt


def _decided(build: Build, shard: int) -> tuple[dict[int, Decided], list[ClipSighting]]:
    """Every asked row's outcome; one that stands beats one that will pass."""
    found: dict[int, Decided] = {}
    sightings: list[ClipSighting] = []
    for path in [f"{work_path(shard)}/resolved.parquet", *segment_paths(build, shard)]:
        rows, seen = read_segment(build, path)
        sightings += seen
        for one in rows:
            earlier = found.get(one.row)
            if earlier is None or _passing(earlier.outcome):
                found[one.row] = one
    return found, sightings


def _passing(outcome: Outcome) -> bool:
    return outcome.rejection is not None and outcome.rejection.transient


def _answered(row: PlannedRow, decided: dict[int, Decided]) -> bool:
    return row.rejection is None and decided[row.row].outcome.answer is not None


def _check_passing(planned: list[PlannedRow], decided: dict[int, Decided]) -> None:
    missing = [row.row for row in planned if row.rejection is None and row.row not in decided]
    if missing:
        raise BuildDamagedError(
            f"{len(missing)} rows have no outcome (row {missing[0]} is the first): "
            "their segments are gone from work/; run the build again"
        )
    passing = [one for one in decided.values() if _passing(one.outcome)]
    clips = sum(len(row.clips) for row in planned)
    if len(passing) > max(FAILED_AT_LEAST - 1, clips * FAILED_SHARE):
        reasons = Counter(one.outcome.rejection.reason for one in passing if one.outcome.rejection)
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise ShardFailedError(
            f"{len(passing)} of {len(planned)} rows failed for reasons that will pass ({told}); "
            "none of them is rejected: run the build again and only they are asked"
        )


def _count(planned: list[PlannedRow], decided: dict[int, Decided]) -> Counts:
    answers = [one for one in decided.values() if one.outcome.answer is not None]
    rejections = [rejection for row in planned if (rejection := _rejection(row, decided))]
    said = [one.outcome.answer for one in answers if one.outcome.answer]
    return Counts(
        rows=len(planned),
        answered=len(answers),
        generated=sum(not one.reused for one in answers),
        reused=sum(one.reused for one in answers),
        rejected=len(rejections),
        transient=sum(rejection.transient for rejection in rejections),
        reasons=dict(sorted(Counter(str(rejection.reason) for rejection in rejections).items())),
        cut_by_max_tokens=sum(answer.finish_reason == "length" for answer in said),
        audio_s=round(sum(clip.heard_s for one in answers for clip in one.outcome.clips), 6),
        prompt_tokens=sum(answer.prompt_tokens for answer in said),
        completion_tokens=sum(answer.completion_tokens for answer in said),
    )


def _rejection(row: PlannedRow, decided: dict[int, Decided]) -> Rejection | None:
    return row.rejection or decided[row.row].outcome.rejection


def _formats(build: Build) -> tuple[Format, ...]:
    return tuple(dict.fromkeys(build.plan.settings.layout.formats))


def _provenance(row: int, outcome: Outcome) -> Json:
    answer = outcome.answer
    return {
        "row": row,
        "finish_reason": answer.finish_reason if answer else None,
        "prompt_tokens": answer.prompt_tokens if answer else None,
        "completion_tokens": answer.completion_tokens if answer else None,
        "clips": [
            {"sha256": clip.sha256, "duration_s": clip.duration_s, "heard_s": clip.heard_s}
            for clip in outcome.clips
        ],
        "cache_key": outcome.cache_key,
    }


def _write_data(
    build: Build, shard: int, fmt: Format, answered: list[tuple[PlannedRow, Decided]]
) -> StoredFile:
    layout = build.plan.settings.layout
    records = [row.record or {} for row, _ in answered]
    answers = [one.outcome.answer.text for _, one in answered if one.outcome.answer]
    provenance = [_provenance(row.row, one.outcome) for row, one in answered]
    if fmt is Format.JSONL:
        lines = (
            {**record, layout.answer_column: answer, layout.provenance_column: origin}
            for record, answer, origin in zip(records, answers, provenance, strict=True)
        )
        data = _jsonl(lines)
    else:
        table = OutputFields.from_json(build.plan.fields).to_arrow(records)
        table = table.append_column(layout.answer_column, pa.array(answers, pa.string()))
        table = table.append_column(layout.provenance_column, pa.array(provenance, PROVENANCE))
        data = parquet_bytes(table, DATA_GROUP_ROWS)
    return _store(build, f"data/shard-{shard:05d}", str(fmt), data, len(answered))


def _write_rejected(
    build: Build, shard: int, rejected: list[PlannedRow], decided: dict[int, Decided]
) -> StoredFile:
    column = build.plan.settings.layout.provenance_column
    lines = []
    for row in rejected:
        rejection = _rejection(row, decided)
        if rejection is None:
            continue
        why = {
            "row": row.row,
            "stage": rejection.stage,
            "reason": rejection.reason,
            "detail": rejection.detail,
            "transient": rejection.transient,
        }
        lines.append({**(row.record or {}), column: why})
    return _store(build, f"rejected/shard-{shard:05d}", "jsonl", _jsonl(lines), len(lines))


def _jsonl(lines: Iterable[Json]) -> bytes:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return text.encode("utf-8", "backslashreplace")


def _store(build: Build, stem: str, extension: str, data: bytes, rows: int) -> StoredFile:
    """Store a file under a name that holds its digest: a stale attempt can never replace it."""
    digest = hashlib.sha256(data).hexdigest()
    path = f"{stem}-{digest[:8]}.{extension}"
    build.store.write_bytes(path, data)
    return StoredFile(path=path, sha256=digest, bytes=len(data), rows=rows)


def _remember(
    build: Build, shard: int, decided: Iterable[Decided], sightings: list[ClipSighting]
) -> None:
    """Keep what this shard found out: new outcomes that stand, and what its clips hold."""
    name = build.segment_name(shard)
    fresh: dict[str, Any] = {}
    for one in decided:
        if not one.reused and one.outcome.cache_key and not _passing(one.outcome):
            fresh.setdefault(one.outcome.cache_key, one.outcome)
    build.outcomes.write(name, outcome_table(fresh.values()))
    latest = {sighting.uri: sighting for sighting in sightings}
    build.sightings.write(name, sighting_table(latest.values()))
