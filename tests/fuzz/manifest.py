"""Bytes as a manifest: what planning promises of every line, whatever it holds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from earwitness.errors import ManifestError, SettingsError
from earwitness.manifest.lint import Linter, LintRules
from earwitness.manifest.planned import parse_plan_line, rejection_json
from earwitness.manifest.read import RawLine
from earwitness.manifest.schema import SchemaBuilder
from earwitness.manifest.unpack import split_lines, unpacked
from earwitness.strict_json import json_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from earwitness.records import PlannedRow

MAX_LINE_BYTES = 2_000
_ROOTS = ("/data/audio", "s3://bucket/set", "https://host/set/")


def check(data: bytes) -> None:
    """Plan the bytes as a manifest and hold the outcome against every promise.

    The first byte chooses settings, the rest is the manifest as it is stored.
    """
    choice, stored = (data[0], data[1:]) if data else (0, b"")
    rules = LintRules(
        audio_root=_ROOTS[choice % 3],
        system_prompt="Listen." if choice & 4 else "",
        question="What do you hear?" if choice & 8 else None,
    )
    block = (1, 7, 64, 4096)[choice >> 4 & 3]
    try:
        lines = list(split_lines(unpacked(_blocks(stored, block), "memory"), MAX_LINE_BYTES))
    except ManifestError:
        return
    _check_lines(stored, block, lines)
    linter = Linter(rules)
    records: list[dict[str, Any]] = []
    for row, line in enumerate(lines):
        try:
            planned, text, _ = linter.plan(_raw_line(row, line))
        except SettingsError:
            continue  # a field named like one of ours: the whole manifest is refused
        _check_row(row, planned, text, rules)
        if planned.rejection is None and planned.record is not None:
            records.append(planned.record)
    _check_fields(records)


def _raw_line(row: int, line: bytes | None) -> RawLine:
    if line is not None:
        return RawLine(row, row + 1, line)
    from earwitness.records import Reason, Rejection, Stage

    return RawLine(row, row + 1, None, None, Rejection(Stage.PLAN, Reason.LINE_TOO_LONG, "long"))


def _blocks(stored: bytes, size: int) -> Iterator[bytes]:
    # readers give the magic number in one piece
    yield stored[:4]
    for start in range(4, len(stored), size):
        yield stored[start : start + size]


def _check_lines(stored: bytes, block: int, lines: list[bytes | None]) -> None:
    assert all(line is None or len(line) <= MAX_LINE_BYTES for line in lines)
    assert all(line is None or b"\n" not in line for line in lines)
    other = 4096 if block != 4096 else 3
    assert list(split_lines(unpacked(_blocks(stored, other), "memory"), MAX_LINE_BYTES)) == lines


def _check_row(row: int, planned: PlannedRow, text: bytes, rules: LintRules) -> None:
    assert planned.row == row
    assert b"\n" not in text
    assert _same(parse_plan_line(text), planned)
    if planned.rejection is not None:
        assert not planned.messages
        assert not planned.clips
        assert len(planned.rejection.detail) < 1_000
        # read by people, and written to logs: characters alone
        json_bytes(rejection_json(planned.rejection)).decode()
        return
    assert planned.record is not None
    # NaN is written as null, and comes back
    assert repr(parse_plan_line(text).record) == repr(planned.record)
    assert 1 <= len(planned.clips) <= rules.max_clips
    assert all("://" in clip or clip.startswith("/") for clip in planned.clips)
    roles = [message["role"] for message in planned.messages]
    assert roles[-1] == "user"
    assert "system" not in roles[1:]
    assert all(one != other for one, other in pairwise(roles))
    parts = [part for message in planned.messages for part in message["content"]]
    heard = [part["clip"] for part in parts if part["type"] == "audio"]
    assert heard == list(range(len(planned.clips)))
    # what is asked and what is written out has to be Unicode
    for value in (planned.record, planned.messages, planned.clips):
        json_bytes(value).decode()
    assert all(part["text"].encode() for part in parts if part["type"] == "text")
    assert all(clip.encode() for clip in planned.clips)


def _same(one: PlannedRow, other: PlannedRow) -> bool:
    """Equal as JSON text has it: NaN is NaN, 1 is neither 1.0 nor true."""
    return all(
        json_bytes(mine) == json_bytes(theirs)
        for mine, theirs in (
            (one.record, other.record),
            (one.clips, other.clips),
            (one.messages, other.messages),
            (
                one.rejection and rejection_json(one.rejection),
                other.rejection and rejection_json(other.rejection),
            ),
        )
    )


def _check_fields(records: list[dict[str, Any]]) -> None:
    """One schema is found for all records, and holds every value of each."""
    if not records:
        return
    builder = SchemaBuilder()
    try:
        for record in records:
            builder.add(record, 100)
        fields = builder.finish()
    except ManifestError:
        return
    table = fields.to_arrow(records)
    assert table.num_rows == len(records)
    read_back = table.to_pylist()
    for record, found in zip(records, read_back, strict=True):
        for name, value in record.items():
            if name not in fields.json_fields:
                assert _is_kept(value, found[name]), (name, value, found[name])


def _is_kept(value: Any, found: Any) -> bool:
    """True where a table's value is the record's; absent fields of objects are null there."""
    if isinstance(value, dict):
        there = isinstance(found, dict) and value.keys() <= found.keys()
        return there and all(_is_kept(value.get(key), found[key]) for key in found)
    if isinstance(value, list):
        there = isinstance(found, list) and len(value) == len(found)
        return there and all(map(_is_kept, value, found))
    if isinstance(value, float) and math.isnan(value):
        return isinstance(found, float) and math.isnan(found)
    return bool(value == found) and isinstance(value, bool) == isinstance(found, bool)
