"""The two tables as Arrow: outcomes by cache key, clip records by URI."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from earwitness.records import (
    Answer,
    ClipFacts,
    HeardClip,
    HeardSound,
    Outcome,
    Reason,
    Rejection,
    Stage,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

HEARD_CLIPS: Any = pa.list_(
    pa.struct([("sha256", pa.string()), ("duration_s", pa.float64()), ("heard_s", pa.float64())])
)

_OUTCOME_FIELDS: list[pa.Field[Any]] = [
    pa.field("answer", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("strikes", pa.int32()),
    pa.field("max_tokens", pa.int32()),
    pa.field("max_model_len", pa.int32()),
]
OUTCOME_COLUMNS = pa.schema(_OUTCOME_FIELDS)

_SOUNDS: Any = pa.list_(
    pa.struct(
        [
            ("rate_hz", pa.int32()),
            ("cut_s", pa.float64()),
            ("heard_s", pa.float64()),
            ("peak", pa.float64()),
            ("pcm_sha256", pa.string()),
        ]
    )
)
_CLIP_FIELDS: list[pa.Field[Any]] = [
    pa.field("uri", pa.string()),
    pa.field("stamp", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("stage", pa.string()),
    pa.field("reason", pa.string()),
    pa.field("detail", pa.string()),
    pa.field("container", pa.string()),
    pa.field("facts_version", pa.int32()),
    pa.field("duration_s", pa.float64()),
    pa.field("longer_than_s", pa.float64()),
    pa.field("sounds", _SOUNDS),
    pa.field("missing", pa.bool_()),
]
_KEY: pa.Field[Any] = pa.field("key", pa.binary(32))
OUTCOME_SCHEMA = pa.schema([_KEY, *_OUTCOME_FIELDS])
CLIP_SCHEMA = pa.schema([_KEY, *_CLIP_FIELDS])


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """What reading a URI once told: its content's SHA-256 and facts, or why it cannot be had.

    Attributes:
        uri: The clip's address.
        stamp: Storage's stamp at that read; while it stays equal, so does what was seen. Empty
            where storage gives none: the clip is fetched again, and its facts hold for equal bytes.
        sha256: Hex digest of the bytes, or None with `rejection` set.
        rejection: A permanent rejection found at fetching.
        facts: What is known of the bytes; None where they were not decoded.
        missing: It was not there when somebody looked last; the rest is what was known before.
    """

    uri: str
    stamp: str
    sha256: str | None
    rejection: Rejection | None = None
    facts: ClipFacts | None = None
    missing: bool = False


def uri_key(uri: str) -> bytes:
    """The clip table's key for a URI."""
    return hashlib.sha256(uri.encode("utf-8", "surrogatepass")).digest()


def _rejection_columns(rejection: Rejection | None) -> dict[str, str | None]:
    return {
        "stage": rejection.stage if rejection else None,
        "reason": rejection.reason if rejection else None,
        "detail": rejection.detail if rejection else None,
    }


def _rejection(row: dict[str, Any]) -> Rejection | None:
    if row["reason"] is None:
        return None
    strikes = row.get("strikes") or 0
    return Rejection(Stage(row["stage"]), Reason(row["reason"]), row["detail"], strikes)


def heard_clips(outcome: Outcome) -> list[dict[str, Any]]:
    """An outcome's clips as `HEARD_CLIPS` holds them."""
    return [
        {"sha256": clip.sha256, "duration_s": clip.duration_s, "heard_s": clip.heard_s}
        for clip in outcome.clips
    ]


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as a row of `OUTCOME_COLUMNS`."""
    answer = outcome.answer
    return {
        "answer": answer.text if answer else None,
        "finish_reason": answer.finish_reason if answer else None,
        "prompt_tokens": answer.prompt_tokens if answer else None,
        "completion_tokens": answer.completion_tokens if answer else None,
        **_rejection_columns(outcome.rejection),
        "strikes": outcome.rejection.strikes if outcome.rejection else None,
        "max_tokens": outcome.max_tokens,
        "max_model_len": outcome.max_model_len,
    }


def outcome_from_row(cache_key: str, row: dict[str, Any]) -> Outcome:
    """The outcome a row of `OUTCOME_COLUMNS` holds; with the record's clips where it has them."""
    rejection = _rejection(row)
    answer = None
    if rejection is None:
        answer = Answer(
            row["answer"], row["finish_reason"], row["prompt_tokens"], row["completion_tokens"]
        )
    return Outcome(
        cache_key,
        answer,
        rejection,
        tuple(HeardClip(**clip) for clip in row.get("clips") or ()),
        row["max_tokens"],
        row["max_model_len"],
    )


def outcome_table(outcomes: Iterable[Outcome]) -> pa.Table:
    """Outcomes in the outcome table's schema; each must have a cache key."""
    rows = [
        {"key": bytes.fromhex(outcome.cache_key), **outcome_row(outcome)} for outcome in outcomes
    ]
    return pa.Table.from_pylist(rows, schema=OUTCOME_SCHEMA)


def _sound_row(sound: HeardSound) -> dict[str, Any]:
    """A sound as `_SOUNDS` holds it; `asdict` takes ten times as long, once for each clip."""
    return {
        "rate_hz": sound.rate_hz,
        "cut_s": sound.cut_s,
        "heard_s": sound.heard_s,
        "peak": sound.peak,
        "pcm_sha256": sound.pcm_sha256,
    }


def clip_row(clip_record: ClipRecord) -> dict[str, Any]:
    """A clip record as a row of `CLIP_SCHEMA`."""
    facts = clip_record.facts
    return {
        "uri": clip_record.uri,
        "stamp": clip_record.stamp,
        "sha256": clip_record.sha256,
        **_rejection_columns(facts.fault if facts else clip_record.rejection),
        "container": facts.container if facts else None,
        "facts_version": facts.version if facts else None,
        "duration_s": facts.duration_s if facts else None,
        "longer_than_s": facts.longer_than_s if facts else None,
        "sounds": list(map(_sound_row, facts.sounds)) if facts else None,
        "missing": clip_record.missing,
    }


def clip_from_row(row: dict[str, Any]) -> ClipRecord:
    """The clip record that a row of `CLIP_SCHEMA` holds."""
    uri, stamp, sha256, rejection = row["uri"], row["stamp"], row["sha256"], _rejection(row)
    if row["container"] is None:
        return ClipRecord(uri, stamp, sha256, rejection, missing=row["missing"])
    facts = ClipFacts(
        row["container"],
        row["facts_version"],
        row["duration_s"],
        row["longer_than_s"],
        tuple(HeardSound(**sound) for sound in row["sounds"]),
        rejection,
    )
    return ClipRecord(uri, stamp, sha256, None, facts, row["missing"])


def clip_table(clip_records: Iterable[ClipRecord]) -> pa.Table:
    """Clip records in the clip table's schema."""
    rows = [{"key": uri_key(seen.uri), **clip_row(seen)} for seen in clip_records]
    return pa.Table.from_pylist(rows, schema=CLIP_SCHEMA)


def still_right(outcome: Outcome, max_tokens: int, max_model_len: int | None) -> bool:
    """Whether a stored outcome is right for the limits asked for now.

    An answer that ended by itself within the limit, or was cut at exactly that limit, is what the
    engine would say again; a context overflow depends on the context; other rejections on neither.

    Args:
        outcome: What the cache holds.
        max_tokens: The limit asked for now.
        max_model_len: The engine's context limit as set now.
    """
    if outcome.answer is None:
        overflow = outcome.rejection and outcome.rejection.reason == Reason.CONTEXT_OVERFLOW
        same = (outcome.max_tokens, outcome.max_model_len) == (max_tokens, max_model_len)
        return same if overflow else True
    tokens = outcome.answer.completion_tokens
    if outcome.answer.finish_reason == "length":
        return tokens == max_tokens
    return tokens <= max_tokens
