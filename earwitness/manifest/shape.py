"""How much room nested values take as a column, known before a column is made of them.

Objects become structs, and a struct has room for every key at every place: a line of a hundred
kilobytes, each object in its list with a key of its own, would take gigabytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwitness.records import Json

    Nested = list[Any] | Json

MAX_KEYS = 200
"""An object with more keys than this is a map, not a struct."""
MAX_CELLS = 2**24
"""More cells than this in a buffer of records are no table."""


class Shapes:
    """The shapes of all fields over a stream of records."""

    def __init__(self) -> None:
        self._shapes: dict[str, _Shape] = {}
        self._misfits: set[str] = set()

    def misfits(self, records: Sequence[tuple[Json, int]]) -> set[str]:
        """Take the next records into account.

        Args:
            records: The next buffer of them, each with how many there are of its signature.

        Returns:
            Fields that no column has room for, of these records and of all before.
        """
        for record, times in records:
            for name, value in record.items():
                if (type(value) is list or type(value) is dict) and name not in self._misfits:
                    self._take(name, value, times)
        rows = sum(times for _, times in records)
        for name in list(self._shapes):
            if self._shapes[name].cells(rows) > MAX_CELLS:
                self._drop(name)
        return self._misfits

    def _take(self, name: str, value: Nested, times: int) -> None:
        shape = self._shapes.get(name)
        if shape is None:
            shape = self._shapes[name] = _Shape()
        try:
            shape.take(value, times)
        except ValueError:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._misfits.add(name)
        del self._shapes[name]


class _Shape:
    """The shape of nested values in one place."""

    __slots__ = ("_fields", "_item", "_items", "_most")

    def __init__(self) -> None:
        # by key what objects here hold, None for plain values; and what lists here hold
        self._fields: dict[str, _Shape | None] = {}
        self._item: _Shape | None = None
        # length of the lists here together, in this buffer and at most in one so far
        self._items = 0
        self._most = 0

    def take(self, value: Nested, times: int) -> None:
        """Take an object or a list into account; raises `ValueError` when it is a map."""
        if type(value) is dict:
            self._take_object(value, times)
        else:
            self._items += len(value) * times
            for inner in value:
                if type(inner) is dict or type(inner) is list:
                    if self._item is None:
                        self._item = _Shape()
                    self._item.take(inner, times)

    def _take_object(self, value: Json, times: int) -> None:
        fields = self._fields
        for key, inner in value.items():
            if type(inner) is dict or type(inner) is list:
                child = fields.get(key)
                if child is None:
                    child = fields[key] = _Shape()
                child.take(inner, times)
            elif key not in fields:
                fields[key] = None
        if len(fields) > MAX_KEYS:
            raise ValueError("a map")

    def cells(self, length: int) -> int:
        """Cells of a column of this length; lists count with the most they held so far."""
        cells = 0
        for child in self._fields.values():
            cells += length if child is None else length + child.cells(length)
        self._most, self._items = max(self._most, self._items), 0
        if self._most:
            cells += self._most if self._item is None else self._item.cells(self._most)
        return cells
