"""Which field of a record holds what the expected field lacks, and the option that reads it."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from earwitness.escaping import listed

if TYPE_CHECKING:
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
