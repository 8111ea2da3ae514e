"""Questions about Arrow types found in JSON: structs, lists and leaves."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from earwitness.manifest.shape import MAX_KEYS
from earwitness.manifest.signature import EXACT


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
