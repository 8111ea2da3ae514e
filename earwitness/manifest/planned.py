"""The frozen plan's lines: one JSON object a planned row, the manifest's own text spliced in."""

from __future__ import annotations

import json
from typing import Any

import orjson

from earwitness.errors import BuildDamagedError
from earwitness.records import PlannedRow, Reason, Rejection, Stage

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_bytes(value: Any) -> bytes:
    """A value as compact JSON in UTF-8, readable text kept as it is.

    Args:
        value: Anything JSON has, and NaN. A lone surrogate is written as its escape.

    Returns:
        One line without its end.
    """
    # what UTF-8 cannot hold, lone surrogates, stand only inside strings, where Python's
    # backslash escape of them is JSON's too
    return _encode(value).encode("utf-8", "backslashreplace")


def plan_line(raw: bytes | None, planned: PlannedRow) -> bytes:
    """A planned row as its line in the frozen plan.

    Args:
        raw: The JSON text `planned.record` was read from, spliced in as it came; None: the record
            is written anew.
        planned: The row.

    Returns:
        One line of JSON, without its end.
    """
    parts = [b'{"row":%d' % planned.row]
    if planned.clips:
        parts.append(b'"clips":%s' % _own_bytes(planned.clips))
    if planned.messages:
        parts.append(b'"messages":%s' % _own_bytes(planned.messages))
    if planned.rejection is not None:
        parts.append(b'"rejection":%s' % _own_bytes(rejection_json(planned.rejection)))
    if raw is None or planned.record is None or b"\n" in raw:
        raw = json_bytes(planned.record)
    parts.append(b'"record":%s}' % raw)
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
        fields = json.loads(line)
        refused = fields.get("rejection")
        return PlannedRow(
            row=fields["row"],
            record=fields["record"],
            clips=tuple(fields.get("clips", ())),
            messages=tuple(fields.get("messages", ())),
            rejection=None
            if refused is None
            else Rejection(Stage(refused["stage"]), Reason(refused["reason"]), refused["detail"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildDamagedError(f"a line of the plan cannot be read: {line[:80]!r}") from error


def _own_bytes(value: Any) -> bytes:
    """What we made ourselves as JSON: texts and small numbers alone, so that orjson may do it.

    It is on the path of every row, and ten times as fast as the standard library.
    """
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate
        return json_bytes(value)
