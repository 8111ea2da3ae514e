"""Records of one make: the same fields with the same kinds of values, at every depth.

A manifest's records are mostly of a few makes. What was found out about one record of a make - that
no key is there twice, which columns it needs - holds for the next million, and is not found out
again. Whatever is out of the ordinary has no signature and goes the careful way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from earwitness.records import Json

EXACT = 2**53
"""Integers up to here survive as a double."""

_MAX_BYTES = 2**14
_MAX_KNOWN = 1024
_MAX_KEYS = 100
_MAX_ITEMS = 64
_MAX_DEPTH = 8

_decode = msgspec.json.Decoder().decode
_SIMPLE = frozenset({str, float, bool, type(None)})
_MISFITS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Signature:
    """The make of records.

    Args:
        record: One of them.

    Attributes:
        quotes: How many quotation marks the JSON of each has; more where a text has some in it, or
            where a key is there twice.
        numbers: Fields that are numbers, with their kinds.
    """

    __slots__ = ("numbers", "quotes")

    def __init__(self, record: Json) -> None:
        self.quotes = _quotes(record)
        self.numbers = [(n, type(value)) for n, value in record.items() if _is_number(value)]


class Signatures:
    """The makes of records seen so far; a thousand, then it forgets them."""

    def __init__(self) -> None:
        self._known: dict[Any, Signature] = {}
        self._last: Signature | None = None
        # of the last record's make, where the one before it was of the same
        self._decode: Callable[[bytes], Json] | None = None
        self._decoders: dict[Signature, Callable[[bytes], Json] | None] = {}

    def parse(self, raw: bytes) -> tuple[Json, Signature] | None:
        """A line's record, where it is ordinary; what comes back is what `parse_record` gives.

        Args:
            raw: The line's bytes.

        Returns:
            The record and its signature, equal objects for records of one make; None for every line
            that takes the careful way: what is wrong in any way, and the rare.
        """
        last = self._last
        if last is None or self._decode is None or len(raw) > _MAX_BYTES:
            return self._parse(raw)
        try:
            record = self._decode(raw)
        except _MISFITS:
            return self._parse(raw)
        # of two equal keys the decoder keeps one, of unknown ones none: the marks give them away
        if raw.count(b'"') != last.quotes:
            return self._parse(raw)
        for name, kind in last.numbers:
            value = record[name]
            if type(value) is not kind or (kind is int and not -EXACT <= value <= EXACT):
                return self._parse(raw)
        return record, last

    def _parse(self, raw: bytes) -> tuple[Json, Signature] | None:
        if len(raw) > _MAX_BYTES:
            return None
        try:
            record = _decode(raw)
            if type(record) is not dict:
                return None
            shape = _shape(record)
        except (*_MISFITS, ValueError):
            return None
        signature = self._known.get(shape)
        if signature is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
                self._decoders.clear()
            signature = self._known[shape] = Signature(record)
        if raw.count(b'"') != signature.quotes:
            return None
        # a decoder is dear to make, and to try in vain
        self._decode = None
        if signature is self._last:
            if signature not in self._decoders:
                self._decoders[signature] = _decoder(record)
            self._decode = self._decoders[signature]
        self._last = signature
        return record, signature


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def _shape(value: Any, depth: int = 0) -> Any:
    """What a value is made of, down to its leaves; raises `ValueError` for the uncommon."""
    kind = type(value)
    if kind is list:
        if len(value) > _MAX_ITEMS or depth > _MAX_DEPTH:
            raise ValueError(kind)
        return (list, *_shapes(value, depth + 1))
    if kind is dict:
        if len(value) > _MAX_KEYS or depth > _MAX_DEPTH:
            raise ValueError(kind)
        return (*value, *_shapes(value.values(), depth + 1))
    if kind is int and not -EXACT <= value <= EXACT:
        raise ValueError(kind)
    return kind


def _shapes(values: Iterable[Any], depth: int) -> list[Any]:
    return [k if (k := type(one)) in _SIMPLE else _shape(one, depth) for one in values]


def _quotes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(2 + _quotes(item) for item in value.values())
    if isinstance(value, list):
        return sum(map(_quotes, value))
    return 2 if isinstance(value, str) else 0


def _decoder(record: Json) -> Callable[[bytes], Json] | None:
    """What reads only lines with a record of this make, as far as numbers are of their kinds.

    None: nothing quick does.
    """
    try:
        fields = {name: _kind(value, top=True) for name, value in record.items()}
    except ValueError:
        return None
    return msgspec.json.Decoder(_object(fields)).decode


def _kind(value: Any, *, top: bool = False) -> Any:
    """The type a decoder takes for exactly such values; raises `ValueError` where there is none."""
    if isinstance(value, dict):
        return _object({name: _kind(item) for name, item in value.items()})
    if isinstance(value, list):
        if len(set(map(_shape, value))) > 1:
            raise ValueError(value)
        item: Any = _kind(value[0]) if value else None
        length = msgspec.Meta(min_length=len(value), max_length=len(value))
        return Annotated[list[item], length]
    if _is_number(value):
        if not top:
            raise ValueError(value)
        # told apart afterwards: a decoder of floats makes one of 1, a decoder of integers takes 1.0
        return int | float
    return None if value is None else type(value)


def _object(fields: dict[str, Any]) -> Any:
    return TypedDict("_Object", fields)  # type: ignore[operator]
