"""The frozen plan's lines: one JSON object a planned row, the manifest's own text spliced in."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from earwitness.errors import BuildDamagedError
from earwitness.records import PlannedRow, Reason, Rejection, Stage
from earwitness.strict_json import Replaced, json_bytes

# both are on the path of every row, ten times as fast as the standard library
_encode_own = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Named(msgspec.Struct):
    """Of a line its clips alone; the rest is passed over."""

    clips: tuple[str, ...] = ()


class _Asked(_Named):
    """Of a line all but the record."""

    row: int = -1
    messages: tuple[Any, ...] = ()
    rejection: Any = None


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_asked = msgspec.json.Decoder(_Asked).decode
# what one parser of JSON refuses (NaN in plans of earlier versions) the other may take
_UNREAD = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def plan_line(raw: bytes | None, planned: PlannedRow, messages: bytes | None = None) -> bytes:
    """A planned row as its line in the frozen plan.

    Args:
        raw: The JSON text `planned.record` was read from, spliced in as it came; None: the record
            is written anew.
        planned: The row.
        messages: `planned.messages` as `own_bytes` writes them, where that is known.

    Returns:
        One line of JSON, without its end.
    """
    row, record, clips, said, rejection = planned
    replaced: Replaced = []
    if raw is None or record is None or b"\n" in raw:
        raw = json_bytes(record, replaced)
    if messages is not None and not replaced:
        own = own_bytes(clips)
        return b'{"row":%d,"clips":%b,"messages":%b,"record":%b}' % (row, own, messages, raw)
    parts = [b'{"row":%d' % row]
    if clips:
        parts.append(b'"clips":%b' % own_bytes(clips))
    if said:
        parts.append(b'"messages":%b' % own_bytes(said))
    if rejection is not None:
        parts.append(b'"rejection":%b' % own_bytes(rejection_json(rejection)))
    if replaced:
        parts.append(b'"not_finite":%b' % json_bytes(replaced))
    parts.append(b'"record":%b}' % raw)
    return b",".join(parts)


def rejection_json(rejection: Rejection) -> dict[str, str]:
    """A rejection as JSON has it."""
    return {
        "stage": rejection.stage.value,
        "reason": rejection.reason.value,
        "detail": rejection.detail,
    }


def parse_plan_line(line: bytes) -> PlannedRow:
    """Read back what `plan_line` wrote.

    Args:
        line: One line of a plan.

    Returns:
        The row as it was planned.

    Raises:
        BuildDamagedError: The line is not one that `plan_line` writes.
    """
    try:
        fields = _parse(line)
        return PlannedRow(
            row=fields["row"],
            record=_restored(fields["record"], fields.get("not_finite", ())),
            clips=tuple(fields.get("clips", ())),
            messages=tuple(fields.get("messages", ())),
            rejection=_rejection(fields.get("rejection")),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BuildDamagedError(f"a line of the plan cannot be read: {line[:80]!r}") from error


def parse_asked(line: bytes) -> PlannedRow:
    """As `parse_plan_line`, without the record (None): half the work, for who asks.

    Args:
        line: One line of a plan.

    Raises:
        BuildDamagedError: The line is not one that `plan_line` writes.
    """
    try:
        known = _decode_asked(line)
        if known.row < 0:
            return parse_plan_line(line)
        return PlannedRow(known.row, None, known.clips, known.messages, _rejection(known.rejection))
    except (*_UNREAD, ValueError, KeyError, TypeError):
        return parse_plan_line(line)._replace(record=None)


def parse_clips(line: bytes) -> tuple[str, ...]:
    """The clips a line of a plan names.

    Args:
        line: One line of a plan.

    Raises:
        BuildDamagedError: The line is not one that `plan_line` writes.
    """
    try:
        return _decode_named(line).clips
    except _UNREAD:
        return parse_plan_line(line).clips


def _rejection(refused: Any) -> Rejection | None:
    if refused is None:
        return None
    return Rejection(Stage(refused["stage"]), Reason(refused["reason"]), refused["detail"])


def _restored(record: Any, replaced: Replaced) -> Any:
    """A record with the numbers that JSON has no word for where they were."""
    for (*path, last), name in replaced:
        inner = record
        for step in path:
            inner = inner[step]
        inner[last] = float(name)
    return record


def is_strict_json(raw: bytes) -> bool:
    """Whether a parser that takes JSON and nothing else reads a text."""
    try:
        _decode(raw)
    except _UNREAD:
        return False
    return True


def _parse(line: bytes) -> Any:
    try:
        return _decode(line)
    except _UNREAD:
        return json.loads(line)


def own_bytes(value: Any) -> bytes:
    """What we made ourselves as JSON: texts and small numbers alone, so that msgspec may do it.

    It is on the path of every row, and ten times as fast as the standard library.

    Args:
        value: A row's clips, messages or rejection.
    """
    try:
        return _encode_own(value)
    except (UnicodeEncodeError, TypeError):  # a lone surrogate
        return json_bytes(value)
