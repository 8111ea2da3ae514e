"""Columns of Parquet manifests as JSON values, and back to exactly the type they had.

Records travel as JSON. What JSON has no value for travels as text: ISO for dates and times,
decimal strings, base64 for bytes, a count of units for durations (and for points in time outside
the years 0 to 9999).
"""

from __future__ import annotations

import base64
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from earwitness.strict_json import json_text


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, without dictionary encoding or extension."""
    plain: Any = kind
    while isinstance(plain, pa.BaseExtensionType | pa.DictionaryType):
        plain = plain.value_type if isinstance(plain, pa.DictionaryType) else plain.storage_type
    if pa.types.is_struct(plain):
        inner = [plain.field(index) for index in range(plain.num_fields)]
        plain = pa.struct([field.with_type(plain_type(field.type)) for field in inner])
    elif _is_list(plain):
        item = plain.value_field.with_type(plain_type(plain.value_type))
        if pa.types.is_fixed_size_list(plain):
            plain = pa.list_(item, plain.list_size)
        else:
            plain = pa.large_list(item) if pa.types.is_large_list(plain) else pa.list_(item)
    return cast("pa.DataType", plain)


def is_restorable(kind: Any) -> bool:
    """True when `to_arrow_column` gives this type back; else the field becomes JSON text."""
    if pa.types.is_map(kind):
        return _is_native(kind.key_type) and _is_native(kind.item_type)
    return (
        _is_native(kind)
        or pa.types.is_temporal(kind)
        or pa.types.is_decimal(kind)
        or _is_bytes(kind)
    )


def from_arrow_column(column: Any) -> list[Any]:
    """A column's values as JSON has them.

    Args:
        column: Any column of a Parquet file.

    Returns:
        A value a row.

    Raises:
        UnicodeDecodeError: A string is not UTF-8.
    """
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_interval(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if pa.types.is_duration(kind):
        return list(column.cast(pa.int64()).to_pylist())
    if pa.types.is_temporal(kind):
        return _time_texts(column)
    values: list[Any] = column.to_pylist()
    return values if _is_native(kind) else [_json_value(value) for value in values]


def json_texts(values: list[Any]) -> list[str | None]:
    """Values as JSON text, for a column of fields that have no one type."""
    return [None if (text := json_text(value)) == "null" else text for value in values]


def decoded_bytes(columns: Any) -> int:
    """About how many bytes columns take as values; what is stored once counts in every row."""
    return sum(_decoded_bytes(column) for column in columns)


def _decoded_bytes(column: Any) -> int:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind: Any = column.type
    if pa.types.is_dictionary(kind):
        values = column.dictionary
        text = _is_bytes(values.type) or pa.types.is_string(values.type)
        text = text or pa.types.is_large_string(values.type)
        if not text:
            return 8 * len(column)
        lengths: Any = pc.binary_length(values)
        return int(pc.sum(lengths.take(column.indices)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_decoded_bytes(inner) for inner in column.flatten())
    if _is_list(kind):
        return _decoded_bytes(column.flatten())
    return int(column.nbytes)


def to_arrow_column(values: list[Any], kind: pa.DataType) -> Any:
    """Values of records as a column, the inverse of `from_arrow_column`.

    Args:
        values: A value a row, as JSON has them.
        kind: The column's type, one that `is_restorable`.

    Returns:
        The column.

    Raises:
        pa.ArrowException: A value does not fit the type.
        ValueError: Likewise.
        TypeError: Likewise.
    """
    if pa.types.is_duration(kind):
        return pa.array(values, pa.int64()).cast(kind)
    if pa.types.is_temporal(kind):
        return _times(values, kind)
    if pa.types.is_decimal(kind):
        return pa.array([None if value is None else Decimal(value) for value in values], kind)
    if _is_bytes(kind):
        return pa.array(
            [None if value is None else base64.b64decode(value) for value in values], kind
        )
    if pa.types.is_map(kind):
        # JSON made lists of the pairs
        return pa.array(
            [None if value is None else [tuple(pair) for pair in value] for value in values], kind
        )
    return pa.array(values, kind)


def _is_native(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        return (
            0 < len(inner) == len({field.name for field in inner})  # same names: no JSON object
            and all(_is_native(field.type) for field in inner)
        )
    if _is_list(kind):
        return _is_native(kind.value_type)
    return (
        pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    )


def _is_list(kind: Any) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_bytes(kind: Any) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _json_value(value: Any) -> Any:
    """A value inside a list, struct or map, as JSON has it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value


def _time_texts(column: Any) -> list[Any]:
    counts = _counts_type(column.type)
    texts: Any = pc.replace_substring(column.cast(pa.string()), " ", "T")
    try:
        exact = _times(texts.to_pylist(), column.type).equals(column)
    except pa.ArrowException:
        exact = False
    return list((texts if exact else column.cast(counts)).to_pylist())


def _times(values: list[Any], kind: pa.DataType) -> Any:
    counts = _counts_type(kind)
    texts: Any = pa.array(
        [value if isinstance(value, str) else None for value in values], pa.string()
    )
    numbers: Any = pa.array([value if isinstance(value, int) else None for value in values], counts)
    if pa.types.is_time(kind):
        # Arrow reads no bare times: read them as times of the first day
        join: Any = pc.binary_join_element_wise
        day = join("1970-01-01", texts, "T")
        read = day.cast(pa.timestamp(kind.unit)).cast(pa.int64()).cast(counts)
    else:
        read = texts.cast(kind).cast(counts)
    return pc.coalesce(read, numbers).cast(kind)


def _counts_type(kind: pa.DataType) -> pa.DataType:
    return pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()
