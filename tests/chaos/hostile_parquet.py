"""Parquet manifests with schemas and bytes that no writer should make."""

from __future__ import annotations

import io
import struct
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from random import Random

ROWS = 3
_AUDIO = pa.array([["0.wav"]] * ROWS)
_TURNS = pa.array([[{"from": "human", "value": "What?"}]] * ROWS)
_PICKLE = b"cos\nsystem\n(S'touch PICKLED'\ntR."


def _file(columns: dict[str, Any], **options: Any) -> bytes:
    return _stored(pa.table({"audio": _AUDIO, "conversation": _TURNS, **columns}), **options)


def _stored(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def _not_utf8() -> Any:
    offsets = pa.array(["a", "b", "c"]).buffers()[1]
    return pa.Array.from_buffers(pa.string(), ROWS, [None, offsets, pa.py_buffer(b"a\xffc")])


def _python_extension() -> bytes:
    """A column that says it was pickled by pyarrow once, with a pickle that runs a command."""
    mark = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": _PICKLE,
    }
    fields = [
        pa.field("audio", _AUDIO.type),
        pa.field("conversation", _TURNS.type),
        pa.field("m", pa.binary(), metadata=mark),
    ]
    columns = [_AUDIO, _TURNS, pa.array([b"a"] * ROWS)]
    return _stored(pa.table(columns, schema=pa.schema(fields)))


def files() -> list[tuple[str, bytes, dict[str, int] | str]]:
    """Each file by name, with what its rows become or a part of the error it has to give."""
    good = {"planned": ROWS}
    whole = _file({"kind": pa.array(["x", "y", None]).dictionary_encode()})
    maps = pa.map_(pa.string(), pa.map_(pa.string(), pa.int64()))
    far = pa.array([[2**62]] * ROWS, pa.list_(pa.timestamp("us")))
    names = ["", "a\0b", "x" * 10_000, "AUDIO", "caf\u00e9", "cafe\u0301", "a.b", "__proto__"]
    return [
        ("10,000 columns", _file({f"c{n}": pa.array([n] * ROWS) for n in range(10_000)}), good),
        ("maps of maps", _file({"m": pa.array([[("a", [("b", 1)])]] * ROWS, maps)}), good),
        (
            "decimals",
            _file({"m": pa.array([Decimal("9" * 30)] * ROWS, pa.decimal256(76, 10))}),
            good,
        ),
        ("nulls", _file({"m": pa.nulls(ROWS), "l": pa.array([[None]] * ROWS)}), good),
        ("dictionaries", whole, good),
        (
            "an extension type",
            _file(
                {
                    "m": pa.ExtensionArray.from_storage(
                        pa.uuid(), pa.array([b"0" * 16] * ROWS, pa.binary(16))
                    )
                }
            ),
            good,
        ),
        ("a pickled extension type", _python_extension(), good),
        ("strange names", _file({name: pa.array([1] * ROWS) for name in names}), good),
        (
            "a name twice",
            _stored(pa.table([_AUDIO, _AUDIO, _TURNS], ["audio", "audio", "conversation"])),
            "the same name: audio",
        ),
        ("audio that is numbers", _file({"audio": pa.array([1] * ROWS)}), {"bad_audio": ROWS}),
        (
            "audio that is structs",
            _file({"audio": pa.array([{"bytes": b"RIFF"}] * ROWS)}),
            {"bad_audio": ROWS},
        ),
        (
            "a conversation of bytes",
            _file({"conversation": pa.array([b"\xff"] * ROWS)}),
            {"bad_conversation": ROWS},
        ),
        ("text that is not UTF-8", _file({"m": _not_utf8()}), {"planned": 2, "bad_encoding": 1}),
        ("times after the end of time", _file({"m": far}), {"bad_encoding": ROWS}),
        ("no columns", _stored(pa.table({"x": pa.array([1])}).select([])), "no records"),
        (
            "no rows",
            _stored(pa.table({"audio": _AUDIO, "conversation": _TURNS}).slice(0, 0)),
            "no records",
        ),
        (
            "metadata of 16 MB",
            _stored(
                pa.table({"audio": _AUDIO, "conversation": _TURNS}).replace_schema_metadata(
                    {"x": "y" * 2**24}
                )
            ),
            good,
        ),
        ("cut in the middle", whole[: len(whole) // 2], "not a whole Parquet file"),
        (
            "a footer of 2 GB",
            whole[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1",
            "not a whole Parquet file",
        ),
        ("a footer of nothing", whole[:-8] + bytes(4) + b"PAR1", "not a whole Parquet file"),
    ]


def repeated_value(rows: int, value_bytes: int) -> bytes:
    """A few kilobytes that stand for gigabytes: one large text in every row."""
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array(["x" * value_bytes])
    )
    audio, turns = pa.array([["0.wav"]] * rows), pa.array([_TURNS[0].as_py()] * rows)
    table = pa.table({"audio": audio, "conversation": turns, "m": column})
    return _stored(table, compression="zstd")


def damaged(dice: Random) -> bytes:
    """A Parquet file with a few bytes changed, in its pages or its footer."""
    data = bytearray(_file({"kind": pa.array(["x", "y", None]).dictionary_encode()}))
    footer = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
    reach = (footer, len(data) - 8) if dice.random() < 0.5 else (4, footer)
    for _ in range(dice.choice([1, 3, 10])):
        data[dice.randrange(*reach)] = dice.randrange(256)
    return bytes(data)
