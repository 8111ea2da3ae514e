"""One schema a build: what type each of the manifest's fields has in the data files.

Objects become structs, and a struct has room for every key at every place: a line of a hundred
kilobytes, each object in its list with a key of its own, would take gigabytes.
"""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from earwitness.errors import BuildDamagedError, ManifestError, SettingsError
from earwitness.manifest.conversation import Asked, asked_turns, asks_nothing, type_with
from earwitness.manifest.parse import MAX_FIELDS
from earwitness.manifest.signature import EXACT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwitness.manifest.signature import Signature
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


def leaves(kind: pa.DataType, path: str = "") -> list[tuple[str, pa.DataType]]:
    """The leaf types inside a type, with their paths by field names."""
    if pa.types.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        return [
            leaf
            for field in inner
            for leaf in leaves(field.type, f"{path}.{json.dumps(field.name)}")
        ]
    if pa.types.is_list(kind):
        return leaves(kind.value_type, f"{path}[]")
    return [(path, kind)]


def large_integers(column: Any, path: str = "") -> list[str]:
    """Paths, as `leaves` gives them, of integers that a double cannot hold."""
    if isinstance(column, pa.ChunkedArray):
        return [found for chunk in column.chunks for found in large_integers(chunk, path)]
    kind = column.type
    if pa.types.is_struct(kind):
        return [
            found
            for index in range(kind.num_fields)
            for found in large_integers(
                column.field(index), f"{path}.{json.dumps(kind.field(index).name)}"
            )
        ]
    if pa.types.is_list(kind):
        return large_integers(column.values, f"{path}[]")
    if pa.types.is_int64(kind) and len(column) > column.null_count:
        ends = pc.min_max(column)
        if ends["min"].as_py() < -EXACT or ends["max"].as_py() > EXACT:
            return [path]
    return []


def holds_doubles(kind: pa.DataType) -> bool:
    """True when there is a double anywhere inside."""
    return any(pa.types.is_float64(leaf) for _, leaf in leaves(kind))


def hides_booleans(values: list[Any], kind: Any) -> bool:
    """True when a boolean became a double: pyarrow takes `[0.5, True]` for `[0.5, 1.0]`.

    Args:
        values: JSON values.
        kind: The type pyarrow found for them.

    Returns:
        Whether a boolean stands where the type has a double.
    """
    if pa.types.is_float64(kind):
        return bool in set(map(type, values))
    there = [value for value in values if value is not None]
    if pa.types.is_list(kind):
        return hides_booleans([item for value in there for item in value], kind.value_type)
    if pa.types.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        return any(
            hides_booleans([value.get(field.name) for value in there], field.type)
            for field in inner
            if holds_doubles(field.type)
        )
    return False


def looks_like_map(kind: pa.DataType) -> bool:
    """True when an object anywhere inside has so many keys that they are data."""
    return any(
        pa.types.is_struct(inner) and inner.num_fields > MAX_KEYS for inner in _all_types(kind)
    )


def is_storable(kind: pa.DataType) -> bool:
    """False for what Parquet cannot hold: a struct without fields, anywhere inside."""
    return not any(
        pa.types.is_struct(inner) and inner.num_fields == 0 for inner in _all_types(kind)
    )


def common_type(one: Any, other: Any) -> Any:
    """The type that holds the values of two; raises what pyarrow raises where there is none."""
    pair = [pa.schema([("", one)]), pa.schema([("", other)])]
    return pa.unify_schemas(pair, promote_options="permissive").field(0).type


def without_nulls(kind: pa.DataType) -> pa.DataType:
    """The type with string in place of "only nulls were seen"."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([pa.field(field.name, without_nulls(field.type)) for field in inner])
    return kind


def _all_types(kind: pa.DataType) -> list[pa.DataType]:
    found = [kind]
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            found += _all_types(kind.field(index).type)
    elif pa.types.is_list(kind):
        found += _all_types(kind.value_type)
    return found


BUFFER_ROWS = 250
"""Few, so that a buffered record is still in the processor's cache when it is looked at again."""
BUFFER_BYTES = 32 * 2**20
_REJECTION_KEYS = frozenset({"row", "stage", "reason", "detail", "transient"})


# what pyarrow raises for values without a common type; its own errors are ValueErrors, TypeErrors
# and NotImplementedErrors too
_MISFITS = (OverflowError, TypeError, ValueError, NotImplementedError)


class CollisionCheck:
    """Refuses manifests whose fields are named like the two that a build adds.

    Args:
        answer_column: Field the answer is written to.
        provenance_column: Field the provenance struct is written to.
    """

    def __init__(self, answer_column: str, provenance_column: str) -> None:
        self._answer = answer_column
        self._provenance = provenance_column

    def strip(self, record: Json, row: int) -> bool:
        """Check a record; what an earlier build said of a rejected row is taken out of it.

        Args:
            record: The manifest's fields, changed in place where True comes back.
            row: Its position in the manifest.

        Returns:
            True when the record was changed.

        Raises:
            SettingsError: A field of the record is named like one of ours.
        """
        if self._answer in record:
            raise SettingsError(
                f"row {row} of the manifest has a field {self._answer!r} already: "
                "give the answers another field with --answer-column"
            )
        if self._provenance not in record:
            return False
        theirs = record[self._provenance]
        if not isinstance(theirs, dict) or not theirs.keys() >= _REJECTION_KEYS:
            raise SettingsError(
                f"row {row} of the manifest has a field {self._provenance!r} already: "
                "give the provenance another field with layout.provenance_column"
            )
        # a rejections file is itself a manifest: its records come back as they once went in
        del record[self._provenance]
        return True


@dataclass(frozen=True, slots=True)
class OutputFields:
    """The manifest's fields as they are written, the same in every shard of a build.

    Attributes:
        schema: Arrow type of each field, in the order the manifest brought them.
        json_fields: Fields whose values have no one type: each value is written as JSON text.
        asked: What records without a conversation were asked; None: there was no question.
    """

    schema: pa.Schema
    json_fields: tuple[str, ...] = ()
    asked: Asked | None = None

    def to_json(self) -> Json:
        """The fields for the plan: exact for machines, with the types' names for people."""
        return {
            "types": {field.name: str(field.type) for field in self.schema},
            "json_fields": list(self.json_fields),
            "arrow": base64.b64encode(self.schema.serialize().to_pybytes()).decode(),
            "asked": self.asked and self.asked._asdict(),
        }

    @classmethod
    def from_json(cls, stored: Json) -> OutputFields:
        """Read back what `to_json` gave.

        Raises:
            BuildDamagedError: It is something else.
        """
        import pyarrow as pa

        try:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored["arrow"])))
            asked = stored.get("asked")  # not in plans of earlier versions
            return cls(schema, tuple(stored["json_fields"]), asked and Asked(**asked))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise BuildDamagedError(f"the plan's output fields cannot be read: {error}") from error

    def complete(self, record: Json) -> Json:
        """A record with the conversation it was asked, its own or the question's."""
        return self.asked.complete(record) if self.asked else record

    def with_question(self, column: str, question: str, *, asked: bool) -> OutputFields:
        """These fields, where a question was given.

        Args:
            column: The field of conversations.
            question: What records without one were asked.
            asked: Whether there are such records among those of these fields.
        """
        import pyarrow as pa

        at = self.schema.get_field_index(column)
        kind = self.schema.field(at).type if at >= 0 else None
        turns = asked_turns(question, kind)
        schema, json_fields = self.schema, self.json_fields
        if asked and column not in json_fields:
            wider = type_with(turns, kind)
            if wider is None:
                json_fields = (*json_fields, column)
            field = pa.field(column, wider or pa.string())
            schema = schema.append(field) if at < 0 else schema.set(at, field)
        return OutputFields(schema, json_fields, Asked(column, turns))

    def to_arrow(self, records: Sequence[Json]) -> pa.Table:
        """Records as a table of this schema; fields a record lacks are null.

        Args:
            records: Records of the manifest the schema is of.

        Returns:
            A table with a row a record.

        Raises:
            BuildDamagedError: A record does not fit the schema: it is not of this manifest.
        """
        import pyarrow as pa

        from earwitness.manifest.columns import json_texts, to_arrow_column

        columns = []
        for field in self.schema:
            values = [record.get(field.name) for record in records]
            try:
                if field.name in self.json_fields:
                    columns.append(pa.array(json_texts(values), field.type))
                else:
                    columns.append(to_arrow_column(values, field.type))
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise BuildDamagedError(
                    f"field {field.name!r} does not fit its planned type {field.type}: {error}"
                ) from error
        if not columns:
            # a table without columns still has its rows
            return pa.table({"": pa.nulls(len(records))}).select([])
        return pa.Table.from_arrays(columns, schema=self.schema)


class SchemaBuilder:
    """Finds each field's type over a stream of records, in constant memory.

    Args:
        schema: The manifest's own schema (Parquet), kept as it is; None: found from the records.
        question: The field of conversations, and what records without one are asked; None: there
            is no question.
    """

    def __init__(
        self, schema: pa.Schema | None = None, question: tuple[str, str] | None = None
    ) -> None:
        self._own = schema
        self._question = question
        self._asked = False
        # all records without a signature, and one of each signature, which stands for its like
        self._records: list[tuple[Json, Signature | None]] = []
        self._counts: dict[Signature, int] = {}
        self._flushed: dict[Signature, int] = {}
        self._room, self._bytes = BUFFER_ROWS, 0
        self._types: dict[str, pa.DataType] = {}
        self._json_text: set[str] = set()
        self._shapes = Shapes()
        # where an integer too large for a double was seen: field → paths inside its type
        self._large: dict[str, set[str]] = {}

    def add(self, record: Json, size_bytes: int = 0, signature: Signature | None = None) -> None:
        """Take a record into account.

        Args:
            record: The manifest's fields.
            size_bytes: About its size, to bound the memory of buffered records.
            signature: The record's, if it has one: equal ones mean equal types.

        Raises:
            ManifestError: The records have too many differently named fields for a table.
        """
        if self._question is not None:
            column = self._question[0]
            if asks_nothing(record.get(column)):
                self._asked = True
                if record.get(column):
                    signature = None  # an empty turn has the make of others that ask something
                if column in record:
                    # what is written in its place has the type that `with_question` adds
                    record = {**record, column: None}
        if self._own is not None:
            return
        self._room -= 1
        if signature is not None and signature in self._counts:
            self._counts[signature] += 1
        else:
            self._records.append((record, signature))
            self._bytes += size_bytes
            if signature is not None:
                self._counts[signature] = 1
        if not self._room or self._bytes >= BUFFER_BYTES:
            self._flush()

    def finish(self) -> OutputFields:
        """The fields of all records added.

        Returns:
            One type a field; fields without one become JSON text.

        Raises:
            ManifestError: The records have too many differently named fields for a table.
        """
        fields = self._found_fields()
        if self._question is None:
            return fields
        column, question = self._question
        return fields.with_question(column, question, asked=self._asked)

    def _found_fields(self) -> OutputFields:
        import pyarrow as pa

        if self._own is not None:
            return _parquet_fields(self._own)
        self._flush()
        fields: list[pa.Field[Any]] = []
        for name, kind in self._types.items():
            found = dict(leaves(kind))
            lossy = any(found.get(path) == pa.float64() for path in self._large.get(name, ()))
            if name in self._json_text or lossy or not is_storable(kind):
                self._json_text.add(name)
                fields.append(pa.field(name, pa.string()))
            else:
                fields.append(pa.field(name, without_nulls(kind)))
        schema = pa.schema(fields)
        return OutputFields(schema, tuple(n for n in schema.names if n in self._json_text))

    def _flush(self) -> None:
        import pyarrow as pa

        counts, pairs = self._counts, self._records
        self._records, self._counts, self._room, self._bytes = [], {}, BUFFER_ROWS, 0
        if len(pairs) == len(counts) and counts == self._flushed:
            return  # as many of the same signatures as the last time: nothing is new
        self._flushed = counts if len(pairs) == len(counts) else {}
        records = [record for record, _ in pairs]
        self._take_names(records)
        # what would take gigabytes as a column is set aside before one is made
        times = [1 if signature is None else counts[signature] for _, signature in pairs]
        self._json_text |= self._shapes.misfits(list(zip(records, times, strict=True)))
        whole = None
        if records and not self._json_text:
            # one pass in C++ over whole records, as long as no field is in conflict
            with suppress(*_MISFITS):
                whole = pa.array(records)
        names = self._types.keys() if whole is None else {field.name for field in whole.type}
        for name in self._types.keys() - self._json_text:
            if whole is None or name in names:
                try:
                    self._widen(name, records, None if whole is None else whole.field(name))
                except _MISFITS:
                    self._json_text.add(name)

    def _take_names(self, records: list[Json]) -> None:
        import pyarrow as pa

        for record in records:
            if not self._types.keys() >= record.keys():
                for name in record:
                    self._types.setdefault(name, pa.null())
        if len(self._types) > MAX_FIELDS:
            raise ManifestError(
                f"the manifest's records have more than {MAX_FIELDS} different field names: "
                "put data that is used as names inside one field"
            )

    def _widen(self, name: str, records: list[Json], column: Any) -> None:
        """Take a field's values into its type; raises one of `_MISFITS` when there is none."""
        import pyarrow as pa

        if column is None:
            column = pa.array([record.get(name) for record in records])
        merged = self._types[name]
        if column.type != merged:
            merged = common_type(merged, column.type)
            if looks_like_map(merged):
                raise ValueError(name)
        if holds_doubles(column.type) and hides_booleans(
            [record.get(name) for record in records], column.type
        ):
            raise ValueError(name)
        self._types[name] = merged
        large = large_integers(column)
        if large:
            self._large.setdefault(name, set()).update(large)


def _parquet_fields(schema: pa.Schema) -> OutputFields:
    import pyarrow as pa

    from earwitness.manifest.columns import is_restorable, plain_type

    fields: list[pa.Field[Any]] = []
    json_fields: list[str] = []
    for field in schema:
        kind: Any = plain_type(field.type)
        if not is_restorable(kind):
            json_fields.append(field.name)
            kind = pa.string()
        fields.append(pa.field(field.name, kind))
    return OutputFields(pa.schema(fields), tuple(json_fields))
