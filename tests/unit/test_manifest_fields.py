"""One schema a build: fields keep their types, conflicting ones become JSON text."""

from __future__ import annotations

import datetime as dt
import io
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earwitness.errors import BuildDamagedError, ManifestError
from earwitness.manifest.read import open_manifest
from earwitness.manifest.schema import OutputFields, SchemaBuilder
from earwitness.records import Reason

if TYPE_CHECKING:
    from pathlib import Path


def fields_of(*chunks: list[Any]) -> OutputFields:
    """The output fields of records with one field `f`, each chunk inferred by itself."""
    builder = SchemaBuilder()
    for chunk in chunks:
        for value in chunk[:-1]:
            builder.add({"f": value})
        builder.add({"f": chunk[-1]}, size_bytes=2**40)
    return builder.finish()


def stored(fields: OutputFields, values: list[Any]) -> list[Any]:
    """The values of field `f` after a trip through the plan and Parquet."""
    fields = OutputFields.from_json(json.loads(json.dumps(fields.to_json())))
    buffer = io.BytesIO()
    pq.write_table(fields.to_arrow([{"f": value} for value in values]), buffer)
    back: list[Any] = pq.read_table(buffer).column("f").to_pylist()
    return back


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 3], pa.int64()),
        ([2**62, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([True, None], pa.bool_()),
        (["2024-01-01", "2024-01-01T00:00:00Z"], pa.string()),
        ([None, None], pa.string()),
        ([[], [None]], pa.list_(pa.string())),
        ([{"a": 1}, {"b": None}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([[1], [2.5]], pa.list_(pa.float64())),
    ],
)
def test_a_field_gets_the_type_its_values_share(values: list[Any], kind: pa.DataType) -> None:
    for fields in (fields_of(values), fields_of(*[[value] for value in values])):
        assert fields.schema.field("f").type == kind
        assert fields.json_fields == ()
        assert len(stored(fields, values)) == len(values)


@pytest.mark.parametrize(
    "values",
    [
        [1, "one"],
        [True, 1],
        [True, 0.5],
        [0.5, True],
        [[0.5], [True]],
        [{"a": [0.5, True]}, None],
        [2**63, 1],
        [2**53 + 1, 0.5],
        [[2**53 + 1], [0.5]],
        [{"a": 2**53 + 1}, {"a": 0.5}],
        [{}, None],
        [[{}], []],
        [[1], {"a": 1}],
        [{f"key {number}": 1 for number in range(201)}, None],
        [{"a": {"b": 1}}, {"a": {"b": "x"}}],
    ],
)
def test_a_field_without_one_type_becomes_json_text(values: list[Any]) -> None:
    for fields in (fields_of(values), fields_of(*[[value] for value in values])):
        assert fields.json_fields == ("f",)
        texts = stored(fields, values)
        assert [None if text is None else json.loads(text) for text in texts] == values


def test_json_text_is_readable() -> None:
    assert stored(fields_of([1, "中文"]), ["中文", {"a": 1}, None]) == ['"中文"', '{"a": 1}', None]


def test_an_integer_id_with_gaps_stays_an_integer() -> None:
    fields = fields_of([9007199254740993, None])
    assert stored(fields, [9007199254740993, None]) == [9007199254740993, None]


def test_fields_keep_the_order_the_manifest_brought_them_in() -> None:
    builder = SchemaBuilder()
    for record in ({"b": 1}, {"a": 1, "b": 2}, {"c": 1}):
        builder.add(record)
    assert builder.finish().schema.names == ["b", "a", "c"]


def test_fields_a_record_lacks_are_null() -> None:
    builder = SchemaBuilder()
    builder.add({"a": 1})
    builder.add({"b": "x"})
    table = builder.finish().to_arrow([{"b": "y"}, {}])
    assert table.to_pylist() == [{"a": None, "b": "y"}, {"a": None, "b": None}]


def test_names_that_are_data_are_refused() -> None:
    builder = SchemaBuilder()
    for number in range(2001):
        builder.add({f"clip {number}": 1})
    with pytest.raises(ManifestError, match="different field names"):
        builder.finish()


def test_records_of_another_manifest_do_not_fit() -> None:
    with pytest.raises(BuildDamagedError, match="'f' does not fit"):
        fields_of([1]).to_arrow([{"f": "x"}])


def test_no_fields_still_have_rows() -> None:
    assert SchemaBuilder().finish().to_arrow([{}, {}]).num_rows == 2


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(stored_value: Any, value: Any) -> bool:
    """Equal, but for object keys that other records brought as nulls and the type of numbers."""
    if isinstance(value, dict) and isinstance(stored_value, dict):
        return all(same(stored_value[key], value.get(key)) for key in stored_value) and (
            value.keys() <= stored_value.keys()
        )
    if isinstance(value, list) and isinstance(stored_value, list):
        return len(value) == len(stored_value) and all(map(same, stored_value, value))
    return bool(stored_value == value) and (type(stored_value) is bool) == (type(value) is bool)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(chunks=st.lists(st.lists(_values, min_size=1, max_size=3), min_size=1, max_size=3))
def test_any_json_values_come_back_equal(chunks: list[list[Any]]) -> None:
    fields = fields_of(*chunks)
    values = [value for chunk in chunks for value in chunk]
    back = stored(fields, values)
    if fields.json_fields:
        back = [None if text is None else json.loads(text) for text in back]
    assert all(map(same, back, values))


MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 123456)  # noqa: DTZ001 - one without a zone is meant
PARQUET_COLUMNS: dict[str, pa.Array[Any]] = {
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float32": pa.array([0.1, None, 1e-30], pa.float32()),
    "text": pa.array(["中文", None, ""], pa.large_string()),
    "labels": pa.array(["a", None, "a"]).dictionary_encode(),
    "naive": pa.array([MOMENT, None, MOMENT], pa.timestamp("us")),
    "zoned": pa.array([MOMENT, None, MOMENT], pa.timestamp("us", tz="Europe/Berlin")),
    "nanos": pa.array([1, None, 1_700_000_000_123_456_789], pa.timestamp("ns")),
    "far": pa.array([-(10**12), None, 0], pa.timestamp("s")),
    "day": pa.array([dt.date(2024, 2, 29), None, dt.date(1, 1, 1)], pa.date32()),
    "clock": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
    "short": pa.array([dt.time(1, 2, 3), None, dt.time(0)], pa.time32("s")),
    "span": pa.array([dt.timedelta(seconds=1), None, dt.timedelta(-1)], pa.duration("us")),
    "price": pa.array([Decimal("1.50"), None, Decimal("-0.01")], pa.decimal128(10, 2)),
    "blob": pa.array([b"\0\xff", None, b""], pa.binary()),
    "fixed": pa.array([b"abcd", None, b"efgh"], pa.binary(4)),
    "vector": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2)),
    "pairs": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "turns": pa.array([[{"from": "human", "value": "x"}], None, []]),
}


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", list(PARQUET_COLUMNS))
def test_parquet_types_survive_records_made_of_json(tmp_path: Path, name: str) -> None:
    path = write_parquet(tmp_path / "m.parquet", {name: PARQUET_COLUMNS[name]})
    with open_manifest(str(path), max_line_bytes=1024) as source:
        records = [json.loads(json.dumps(line.record)) for line in source]
        fields = SchemaBuilder(source.schema).finish()
    original = pq.read_table(path).column(name)
    if pa.types.is_dictionary(original.type):
        original = original.cast(pa.string())
    table = fields.to_arrow(records)
    assert fields.json_fields == ()
    assert table.schema.field(name).type == original.type
    assert table.column(name).combine_chunks().equals(original.combine_chunks())


def test_nested_parquet_values_that_json_lacks_become_json_text(tmp_path: Path) -> None:
    column = pa.array([[MOMENT], None], pa.list_(pa.timestamp("us")))
    path = write_parquet(tmp_path / "m.parquet", {"f": column})
    with open_manifest(str(path), max_line_bytes=1024) as source:
        records = [line.record or {} for line in source]
        fields = SchemaBuilder(source.schema).finish()
    assert fields.json_fields == ("f",)
    assert fields.to_arrow(records).column("f").to_pylist() == [f'["{MOMENT.isoformat()}"]', None]


def test_parquet_rows_number_like_lines(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "m.pq", {"id": list(range(3000))})
    with open_manifest(str(path), max_line_bytes=1024) as source:
        assert [(line.row, line.record) for line in source] == [
            (row, {"id": row}) for row in range(3000)
        ]
        assert source.rows == 3000
        assert len(source.digest) == 64


def test_parquet_text_not_utf8_is_one_rejected_row(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff", b"fine"]).view(pa.string())
    path = write_parquet(tmp_path / "m.parquet", {"f": bad})
    with open_manifest(str(path), max_line_bytes=1024) as source:
        lines = list(source)
    assert [line.rejection and line.rejection.reason for line in lines] == [
        None,
        Reason.BAD_ENCODING,
        None,
    ]


def test_an_empty_parquet_manifest_is_an_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "m.parquet", {"f": pa.array([], pa.int64())})
    source = open_manifest(str(path), max_line_bytes=1024)
    with source, pytest.raises(ManifestError, match="holds no records"):
        list(source)


@pytest.mark.parametrize(
    "value",
    [
        # each would be a column of gigabytes: a struct has room for every key at every place
        [{f"k{number}": 1} for number in range(3_000)],
        [{f"k{number}": 1 for number in range(150)}, *[{}] * 120_000],
    ],
)
def test_values_that_no_column_has_room_for_become_json_text(value: Any) -> None:
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    assert fields_of([value, value]).json_fields == ("f",)
    assert pool.max_memory() - before < 2**26


def test_lists_that_grow_after_a_wide_object_was_seen_become_json_text() -> None:
    wide = [{f"k{number}": 1 for number in range(150)}]
    assert fields_of([wide], [[{}] * 120_000]).json_fields == ("f",)


def test_long_lists_of_small_objects_stay_a_column() -> None:
    words = [{"word": "a", "start": 0.5, "end": 1.0}] * 2_000
    assert fields_of([words] * 4).json_fields == ()


def test_a_row_of_parquet_longer_than_allowed_is_rejected_unread(tmp_path: Path) -> None:
    large = pa.array(["x" * 50_000, "y"]).dictionary_encode().take(pa.array([0, 1, 0]))
    pq.write_table(pa.table({"f": large}), tmp_path / "m.parquet")
    with open_manifest(str(tmp_path / "m.parquet"), max_line_bytes=20_000) as source:
        reasons = [line.rejection and line.rejection.reason for line in source]
    assert reasons == [Reason.LINE_TOO_LONG, None, Reason.LINE_TOO_LONG]


def test_a_parquet_value_that_python_has_none_for_costs_its_row_alone(tmp_path: Path) -> None:
    times = pa.array([[0], [2**62], [1]], pa.list_(pa.timestamp("us")))
    pq.write_table(pa.table({"f": times}), tmp_path / "m.parquet")
    with open_manifest(str(tmp_path / "m.parquet"), max_line_bytes=20_000) as source:
        reasons = [line.rejection and line.rejection.reason for line in source]
    assert reasons == [None, Reason.BAD_ENCODING, None]


def test_a_parquet_file_with_names_that_are_no_text_is_refused(tmp_path: Path) -> None:
    stored = io.BytesIO()
    pq.write_table(pa.table({"name": pa.array([1])}), stored, store_schema=False)
    (tmp_path / "m.parquet").write_bytes(stored.getvalue().replace(b"name", b"na\xff\xfe"))
    with pytest.raises(ManifestError, match="not a whole Parquet file"):
        open_manifest(str(tmp_path / "m.parquet"), max_line_bytes=20_000)
