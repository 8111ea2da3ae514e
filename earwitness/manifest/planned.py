"""The frozen plan's lines: one JSON object a planned row, the manifest's own text spliced in."""

from __future__ import annotations

import json
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Any

from earwitness.errors import BuildDamagedError
from earwitness.records import PlannedRow, Reason, Rejection, Stage

if TYPE_CHECKING:
    from earwitness.records import Message

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def json_bytes(value: Any) -> bytes:
    """A value as compact JSON in UTF-8, readable text kept as it is.

    Args:
        value: Anything JSON has, and NaN. A lone surrogate is written as its escape.

    Returns:
        One line without its end.
    """
    return _to_utf8(_encode(value))


def plan_line(raw: bytes | None, planned: PlannedRow) -> bytes:
    """A planned row as its line in the frozen plan.

    Args:
        raw: The JSON text `planned.record` was read from, spliced in as it came; None: the record
            is written anew.
        planned: The row.

    Returns:
        One line of JSON, without its end.
    """
    head = f'{{"row":{planned.row}'
    if planned.clips:
        head += f',"clips":[{",".join(map(quoted, planned.clips))}]'
    if planned.messages:
        head += f',"messages":[{",".join(map(_message_json, planned.messages))}]'
    rejection = planned.rejection
    if rejection is not None:
        head += (
            f',"rejection":{{"stage":{quoted(rejection.stage)},"reason":{quoted(rejection.reason)}'
            f',"detail":{quoted(rejection.detail)}}}'
        )
    if raw is None or planned.record is None or b"\n" in raw:
        raw = json_bytes(planned.record)
    return b'%s,"record":%s}' % (_to_utf8(head), raw)


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


def _message_json(message: Message) -> str:
    """One message as JSON; by hand, as it is on the path of every row (5 times json.dumps)."""
    content = ",".join(
        [
            f'{{"type":"text","text":{quoted(part["text"])}}}'
            if part["type"] == "text"
            else f'{{"type":"audio","clip":{part["clip"]}}}'
            for part in message["content"]
        ]
    )
    return f'{{"role":{quoted(message["role"])},"content":[{content}]}}'


def _to_utf8(text: str) -> bytes:
    # what UTF-8 cannot hold, lone surrogates, stand only inside strings, where Python's
    # backslash escape of them is JSON's too
    return text.encode("utf-8", "backslashreplace")
