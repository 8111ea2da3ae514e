"""From a line to a record: strict JSON, and which fields it has instead of those expected."""

from __future__ import annotations

import json
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from earwitness.escaping import listed
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from earwitness.records import Json


_SHOWN_FIELDS = 8
_NAME_CHARS = 40
_AUDIO_FILE = re.compile(
    r"(?i)\S.*\.(wav|flac|mp3|ogg|oga|opus|m4a|mp4|aac|amr|webm|mka|wma|aiff?|caf|au|sph)(\?.*)?"
)
_CONVERSATIONS = ("conversations", "messages", "dialogue", "dialog", "turns", "chat")


def missing_audio(record: Json, column: str) -> str:
    """What to say of a record without its audio field.

    Args:
        record: The manifest's fields.
        column: The field's name.
    """
    found = [name for name, value in record.items() if _is_audio(value)]
    return _missing(record, column, found, "--audio-column")


def missing_conversation(record: Json, column: str) -> str:
    """What to say of a record without a conversation where no question is given.

    Args:
        record: The manifest's fields.
        column: The field's name.
    """
    found = [name for name in _CONVERSATIONS if isinstance(record.get(name), list)]
    told = _missing(record, column, found, "--conversation-column")
    return f"{told}, and there is no --question to ask instead"


def _missing(record: Json, column: str, found: list[str], option: str) -> str:
    if not record:
        return f"field {column!r} is missing: the record has no fields"
    close = get_close_matches(column, found, n=1, cutoff=0) or get_close_matches(
        column.lower(), record, n=1, cutoff=0.8
    )
    names = listed([repr(name[:_NAME_CHARS]) for name in record], _SHOWN_FIELDS)
    told = f"field {column!r} is missing; the record has {names}"
    return f"{told} (add {option} {close[0]} to read that field)" if close else told


def _is_audio(value: Any) -> bool:
    if isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, str) and _AUDIO_FILE.fullmatch(value) is not None


MAX_DEPTH = 100
"""Deeper nesting is refused, at a fixed depth so that it never depends on the stack's state."""

MAX_FIELDS = 2_000
"""A record with more fields than this has data in the place of names: no table holds it."""

_WHITE = " \t\r\n"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}
_TOO_DEEP = f"the JSON is nested deeper than {MAX_DEPTH} levels"


def parse_record(raw: bytes) -> tuple[Json | None, Rejection | None]:
    """The JSON object a line holds.

    Args:
        raw: The line's bytes.

    Returns:
        The object and None, or None and what is wrong with the line; both when it is an object
        with text in it that is no Unicode, or with too many fields.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return None, _rejection(
            Reason.BAD_ENCODING,
            f"the line is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}",
        )
    try:
        value = _parse(text)
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_too_deep(value):
            raise ValueError(_TOO_DEEP)  # noqa: TRY301 - one place says what malformed lines get
    except RecursionError:
        return None, _malformed(_TOO_DEEP)
    except ValueError as error:
        return None, _malformed(str(error))
    if not isinstance(value, dict):
        return None, _rejection(
            Reason.NOT_AN_OBJECT, f"the line is {json_kind(value)}, not an object with fields"
        )
    return value, _unfit(value, text)


def json_kind(value: Any) -> str:
    """The kind of a JSON value, for messages: "an object", "a list", "a number", …."""
    return _KINDS.get(type(value), "a number")


def _parse(text: str) -> Any:
    start = 0 if text[:1] == "{" else len(text) - len(text.lstrip(_WHITE))
    try:
        value, end = _scan(text, start)
    except StopIteration as error:
        raise ValueError(_at("no JSON value", text, error.value)) from None
    except json.JSONDecodeError as error:
        raise ValueError(_at(error.msg, text, error.pos)) from None
    if end != len(text) and text[end:].strip(_WHITE):
        raise ValueError(_at("text after the end of the JSON value", text, end))
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; keys must differ, as readers disagree on which of two values counts."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = _first_twice([key for key, _ in pairs])
        raise ValueError(f"the key {twice[:80]!r} appears twice in one object")
    return fields


def _first_twice(names: list[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


# the scanner itself: json.loads and the decoder's own methods cost as much again a line
_scan: Callable[[str, int], tuple[Any, int]]
_scan = cast("Any", json.JSONDecoder(object_pairs_hook=_object)).scan_once


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
    return any(isinstance(item, dict | list) for item in level)


def _unfit(record: Json, text: str) -> Rejection | None:
    """What keeps an object from being a record, if anything."""
    if len(record) > MAX_FIELDS:
        return _rejection(
            Reason.TOO_MANY_FIELDS, f"the record has {len(record)} fields, more than {MAX_FIELDS}"
        )
    if "\\u" in text and _SURROGATE.search(text):
        return _surrogate_rejection(record)
    return None


def _surrogate_rejection(record: Json) -> Rejection | None:
    for key, value in record.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return _rejection(
                Reason.BAD_ENCODING, f"field {key[:80]!r} has half a surrogate pair in its text"
            )
    return None


def _at(message: str, text: str, position: int) -> str:
    near = text[max(0, position - 20) : position + 20]
    return f"{message} at character {position + 1}, near {near!r}"


def _malformed(message: str) -> Rejection:
    return _rejection(Reason.MALFORMED_LINE, f"the line is not JSON: {message[:180]}")


def _rejection(reason: Reason, detail: str) -> Rejection:
    return Rejection(Stage.PLAN, reason, detail)
