"""Every JSON that is written can be read by a parser that knows JSON alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_build_publish import published

from earwitness.manifest.planned import parse_asked, parse_clips, parse_plan_line, plan_line
from earwitness.manifest.schema import SchemaBuilder
from earwitness.records import PlannedRow
from earwitness.settings import BuildSettings
from earwitness.strict_json import json_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.builds.layout import Build

ASKED = '"audio": ["x.wav"], "conversation": [{"from": "human", "value": "What?"}]'
ODD = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "[0.5, NaN]",
    '{"a": [{"b": NaN}]}',
    '{"nan": 1, "b": [Infinity, [NaN, "NaN"]]}',
    "123456789012345678901234567890",
    "1" + "0" * 400 + ".0",
]


def strictly_read(build: Build) -> dict[str, list[Any]]:
    """Every JSON file below the output, by a parser that takes JSON and nothing else."""
    found: dict[str, list[Any]] = {}
    for path in build.output.sizes():
        data = build.output.read_bytes(path)
        if path.endswith(".jsonl"):
            found[path] = [msgspec.json.decode(line) for line in data.split(b"\n") if line]
        elif path.endswith(".json"):
            found[path] = [msgspec.json.decode(data)]
    return found


def part(found: dict[str, list[Any]], folder: str) -> list[Any]:
    return [row for path, rows in found.items() if f"/{folder}/" in path for row in rows]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("value", ODD)
def test_odd_numbers_in_a_field_are_written_as_valid_json(tmp_path: Path, value: str):
    lines = [f'{{{ASKED}, "id": {number}, "f": {value}}}' for number in range(4)]
    found = strictly_read(published(write_lines(tmp_path / "m.jsonl", lines)))
    assert len(part(found, "jsonl")) == len(part(found, "rejected")) == 2
    assert len(part(found, "plan")) == 4


def test_nan_in_a_field_is_null_in_json_lines_and_nan_in_a_float_column(tmp_path: Path):
    lines = [f'{{{ASKED}, "f": NaN}}', f'{{{ASKED}, "f": NaN}}']
    build = published(write_lines(tmp_path / "m.jsonl", lines))
    found = strictly_read(build)
    assert [row["f"] for row in part(found, "jsonl")] == [None]
    assert [row["f"] for row in part(found, "rejected")] == [None]
    (path,) = build.store.sizes("data")
    column = pq.read_table(build.store.open(path)).column("f")
    assert column.type == pa.float64()
    assert math.isnan(column[0].as_py())


def test_nan_in_a_parquet_manifest_stays_nan_in_parquet_alone(tmp_path: Path):
    turns = [[{"from": "human", "value": "What?"}]] * 2
    nan = float("nan")
    table = pa.table(
        {
            "audio": ["x.wav", "y.wav"],
            "conversation": turns,
            "f": [nan, nan],
            "inner": [{"a": [nan, 1.0]}, {"a": [float("inf")]}],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    build = published(tmp_path / "m.parquet")
    (row,) = part(strictly_read(build), "jsonl")
    assert (row["f"], row["inner"]) == (None, {"a": [None, 1.0]})
    (path,) = build.store.sizes("data")
    stored = pq.read_table(build.store.open(path)).to_pylist()[0]
    assert math.isnan(stored["f"])
    assert math.isnan(stored["inner"]["a"][0])


def test_json_text_in_a_column_is_valid_json(tmp_path: Path):
    lines = [f'{{{ASKED}, "f": {value}}}' for value in ('["a", NaN]', "NaN", '"x"', "1")]
    build = published(write_lines(tmp_path / "m.jsonl", lines))
    (path,) = build.store.sizes("data")
    texts = pq.read_table(build.store.open(path)).column("f").to_pylist()
    assert texts == ['["a", null]', None]


def test_half_a_surrogate_pair_in_a_rejected_row_is_written_as_valid_json(tmp_path: Path):
    lines = [f'{{{ASKED}, "f": "a\\ud83d b"}}', f"{{{ASKED}}}", f"{{{ASKED}}}"]
    found = strictly_read(published(write_lines(tmp_path / "m.jsonl", lines)))
    odd = [row for row in part(found, "rejected") if row["earwitness"]["row"] == 0]
    assert [row["f"] for row in odd] == ["a\ufffd b"]
    assert odd[0]["earwitness"]["reason"] == "bad_encoding"


def test_integers_of_any_size_keep_their_digits(tmp_path: Path):
    lines = [f'{{{ASKED}, "f": {10**30}}}'] * 2
    found = strictly_read(published(write_lines(tmp_path / "m.jsonl", lines)))
    assert [row["f"] for row in part(found, "jsonl") + part(found, "rejected")] == [10**30] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_settings_are_finite_numbers(value: float):
    with pytest.raises(ValidationError, match="finite"):
        BuildSettings(manifest="m", output="o", engine={"start_timeout_s": value})


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), _json, max_size=4))
def test_a_line_of_the_plan_is_valid_json_and_gives_its_record_back(record: dict[str, Any]):
    planned = PlannedRow(3, record, ("s3://b/a.wav",))
    stored = plan_line(None, planned)
    msgspec.json.decode(stored)
    assert repr(parse_plan_line(stored).record) == repr(_unicode(record))
    assert parse_asked(stored) == planned._replace(record=None)
    assert parse_clips(stored) == planned.clips


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
    if isinstance(value, list):
        return [_unicode(item) for item in value]
    if isinstance(value, dict):
        return {_unicode(key): _unicode(item) for key, item in value.items()}
    return value


@given(_json)
def test_any_value_is_written_as_valid_json(value: Any):
    msgspec.json.decode(json_bytes(value))


def test_a_schema_with_json_text_takes_nan():
    builder = SchemaBuilder()
    records: list[Any] = [{"f": ["x", float("nan")]}, {"f": 1}]
    for record in records:
        builder.add(record)
    texts = builder.finish().to_arrow(records).column("f").to_pylist()
    assert [json.loads(text, parse_constant=pytest.fail) for text in texts] == [["x", None], 1]
