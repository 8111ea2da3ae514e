"""JSON that every parser reads: no NaN, no infinity, no half of a surrogate pair.

Python's `json` writes NaN and infinities as words that are not JSON, and half of a surrogate pair
as an escape that strict parsers refuse. One such value makes a whole file unreadable for them.
Integers of any size keep their digits: those are JSON.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

Replaced = list[tuple[list[str | int], str]]
"""Numbers that JSON has no word for: the keys and positions that lead to each, and its name."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_COMPACT = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SPACED = json.JSONEncoder(ensure_ascii=False, allow_nan=False)
_INDENTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, indent=1)


def json_bytes(value: Any, replaced: Replaced | None = None) -> bytes:
    """A value as one compact line of JSON in UTF-8, without its end.

    Args:
        value: What JSON has. NaN and infinities are written as null, half of a surrogate pair as
            U+FFFD.
        replaced: The numbers written as null are appended, named `nan`, `inf` or `-inf`.
    """
    return _encode(_COMPACT, value, replaced)


def json_text(value: Any) -> str:
    """A value as one line of JSON, spaced as people write it; otherwise as `json_bytes`."""
    return _encode(_SPACED, value).decode()


def json_document(value: Any) -> bytes:
    """A value as indented JSON with a final newline; otherwise as `json_bytes`."""
    return _encode(_INDENTED, value) + b"\n"


def _encode(encoder: json.JSONEncoder, value: Any, replaced: Replaced | None = None) -> bytes:
    try:
        text = encoder.encode(value)
    except ValueError:  # NaN or an infinity is in it
        text = encoder.encode(_finite(value, (), [] if replaced is None else replaced))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()


def _finite(value: Any, path: tuple[str | int, ...], replaced: Replaced) -> Any:
    if isinstance(value, float) and not isfinite(value):
        replaced.append(([*path], str(value)))
        return None
    if isinstance(value, dict):
        return {key: _finite(item, (*path, key), replaced) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, (*path, index), replaced) for index, item in enumerate(value)]
    return value
