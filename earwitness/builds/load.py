"""Published builds as DataFrames, for people."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from earwitness.addresses import parent_uri
from earwitness.builds.layout import Build
from earwitness.builds.publish import latest_build
from earwitness.builds.writers import PROVENANCE
from earwitness.errors import BuildNotFoundError
from earwitness.manifest.clips import ClipResolver
from earwitness.storage import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

REJECTION_FIELDS = ("row", "stage", "reason", "detail", "transient")
"""What is told of a rejection."""


def load_answers(output: str, build: str | None = None) -> pd.DataFrame:
    """A build's rows in order; see `earwitness.load`."""
    chosen = published_build(output, build)
    facts = chosen.facts()
    column = facts["settings"]["layout"]["provenance_column"]
    parquet = _paths(facts, "data/", ".parquet")
    if not parquet:
        return _frame(chosen, facts, "jsonl")
    tables = [pq.read_table(io.BytesIO(chosen.store.read_bytes(path))) for path in parquet]
    # notes in the files about how pandas should make its frame are not ours
    table = pa.concat_tables(tables).replace_schema_metadata()
    frame = _flat(table, column)
    audio = facts["settings"]["input"]["audio_column"]
    if audio in frame:
        frame[audio] = _addresses(table.column(audio).to_pylist(), facts, parquet=True)
    return frame


def load_rejections(output: str, build: str | None = None) -> pd.DataFrame:
    """A build's rejections in order; see `earwitness.load_rejected`."""
    chosen = published_build(output, build)
    return _frame(chosen, chosen.facts(), "rejected")


def _frame(build: Build, facts: dict[str, Any], folder: str) -> pd.DataFrame:
    """JSON lines, one column at a time: where values disagree, as the Python objects they are."""
    column = facts["settings"]["layout"]["provenance_column"]
    audio = facts["settings"]["input"]["audio_column"]
    rows = list(_jsonl_rows(build, _paths(facts, f"{folder}/", ".jsonl")))
    names = dict.fromkeys(name for row in rows for name in row if name != column)
    fields = {name: [row.get(name) for row in rows] for name in names}
    ours = REJECTION_FIELDS if folder == "rejected" else PROVENANCE.names
    more = {f"{column}.{name}": [row[column][name] for row in rows] for name in ours}
    frame = {name: _series(values) for name, values in {**fields, **more}.items()}
    if audio in fields:
        frame[audio] = _addresses(fields[audio], facts, parquet=False)
    return pd.DataFrame(frame)


def _addresses(values: list[Any], facts: dict[str, Any], *, parquet: bool) -> pd.Series[Any]:
    """The audio field with the addresses of clips absolute, each in the shape it came in."""
    source = facts["settings"]["input"]
    if parquet and source["audio_column"] in facts["fields"]["json_fields"]:
        values = [text and json.loads(text) for text in values]
    root = source["audio_root"] or parent_uri(facts["manifest"]["uri"])
    resolver = ClipResolver(root, source["audio_column"], source["max_clips"])
    return _series([resolver.named(value) for value in values])


def published_build(output: str, build: str | None = None) -> Build:
    """The published build asked for, or the newest.

    Raises:
        BuildNotFoundError: There is none.
    """
    name = build or latest_build(output)
    if not name:
        raise BuildNotFoundError(f"nothing is published at {Store(output).root}")
    return Build(output, name)


def _paths(facts: dict[str, Any], folder: str, extension: str) -> list[str]:
    paths = [file["path"] for file in facts["files"]]
    return sorted(path for path in paths if path.startswith(folder) and path.endswith(extension))


def _jsonl_rows(build: Build, paths: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        for line in build.store.read_bytes(path).split(b"\n"):
            if line:
                yield json.loads(line)


def _flat(table: pa.Table, column: str) -> pd.DataFrame:
    """A table with the provenance struct flattened to dotted columns, nullable types throughout."""
    at = table.schema.get_field_index(column)
    if at >= 0 and table.num_rows:
        struct: Any = table.column(at).combine_chunks()
        table = table.remove_column(at)
        for field, values in zip(struct.type, struct.flatten(), strict=True):
            table = table.append_column(f"{column}.{field.name}", values)
    return table.to_pandas(types_mapper=_NULLABLE.get)


_NULLABLE: dict[pa.DataType, Any] = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.float32(): pd.Float32Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
}


def _series(values: list[Any]) -> pd.Series[Any]:
    try:
        array = pa.array(values)
    # UnicodeEncodeError: half a surrogate pair, one of the reasons records are rejected for
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
        return pd.Series(values, dtype=object)
    series: pd.Series[Any] = array.to_pandas(types_mapper=_NULLABLE.get)
    return series
