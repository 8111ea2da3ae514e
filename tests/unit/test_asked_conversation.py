"""Where --question asked, the rows say what was asked, in the shape of the manifest's own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_build_publish import published

from earwitness.builds.resolve import read_shard
from earwitness.manifest.lint import Linter, lint_rules
from earwitness.manifest.read import RawLine

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.builds.layout import Build

QUESTION = "What do you hear?"
HUMAN = [{"from": "human", "value": QUESTION}]
USER = [{"role": "user", "content": QUESTION}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
OWN = [{"from": "human", "value": "Its own?"}]


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines(build: Build, folder: str) -> list[dict[str, Any]]:
    """The rows of a folder's JSON lines."""
    (path,) = build.store.sizes(folder)
    return [json.loads(line) for line in build.store.read_bytes(path).splitlines()]


def column(build: Build, name: str = "conversation") -> list[Any]:
    (path,) = build.store.sizes("data")
    values: list[Any] = pq.read_table(build.store.open(path)).column(name).to_pylist()
    return values


@pytest.mark.parametrize(
    "blank",
    [{}, {"conversation": None}, {"conversation": []}, {"conversation": float("nan")}],
)
def test_a_row_that_was_asked_the_question_holds_its_conversation(tmp_path: Path, blank: Any):
    records = [{"audio": "x.wav", "id": number, **blank} for number in range(4)]
    build = published(write_lines(tmp_path / "m.jsonl", records), question=QUESTION)
    assert [row["conversation"] for row in lines(build, "jsonl")] == [HUMAN] * 2
    assert [row["conversation"] for row in lines(build, "rejected")] == [HUMAN] * 2
    assert column(build) == [HUMAN] * 2


@pytest.mark.parametrize(
    "blank", ["", [{"from": "system", "value": " "}], [{"role": "system", "content": []}]]
)
def test_a_conversation_that_asks_nothing_is_replaced(tmp_path: Path, blank: Any):
    records = [{"audio": "x.wav", "conversation": blank}] * 2
    build = published(write_lines(tmp_path / "m.jsonl", records), question=QUESTION)
    assert lines(build, "jsonl")[0]["conversation"] == HUMAN
    assert lines(build, "rejected")[0]["conversation"] == HUMAN
    assert column(build) == [HUMAN]


def test_the_conversation_has_the_columns_own_name(tmp_path: Path):
    manifest = write_lines(tmp_path / "m.jsonl", [{"audio": "x.wav"}] * 2)
    source = {"conversation_column": "turns"}
    build = published(manifest, question=QUESTION, input=source)
    assert column(build, "turns") == [HUMAN]
    assert lines(build, "rejected")[0]["turns"] == HUMAN


@pytest.mark.parametrize(
    ("own", "asked"),
    [
        (OWN, HUMAN),
        ([{"role": "user", "content": "Its own?"}], USER),
        ([{"role": "user", "content": [{"type": "text", "text": "Its own?"}]}], PARTS),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_mixed_records_have_one_schema_in_their_own_form(
    tmp_path: Path, own: Any, asked: Any, first: int
):
    both = [{"audio": "x.wav", "conversation": own}, {"audio": "y.wav"}]
    records = [both[first], both[1 - first]] * 2
    build = published(write_lines(tmp_path / "m.jsonl", records), question=QUESTION)
    expected = [own, asked] if first == 0 else [asked, own]
    assert column(build) == expected
    assert [row["conversation"] for row in lines(build, "jsonl")] == expected
    assert [row["conversation"] for row in lines(build, "rejected")] == expected


def test_an_empty_system_turn_of_the_form_of_others_hides_none_of_them(tmp_path: Path):
    empty, own = [{"role": "system", "content": ""}], [{"role": "user", "content": "A?"}]
    records = [{"audio": "x.wav", "conversation": one} for one in [empty, own] * 300]
    build = published(write_lines(tmp_path / "m.jsonl", records), question=QUESTION)
    assert column(build)[:2] == [USER, own]
    assert column(build)[-2:] == [USER, own]


def test_conversations_of_several_forms_are_json_text_with_the_question_among_them(tmp_path: Path):
    own = [
        [{"role": "user", "content": "A?"}],
        [{"role": "user", "content": [{"type": "text", "text": "B?"}]}],
    ]
    records = [{"audio": "x.wav", "conversation": one} for one in own]
    records += [{"audio": "x.wav"}] * 4
    build = published(write_lines(tmp_path / "m.jsonl", records), question=QUESTION)
    assert [json.loads(text) for text in column(build)] == [*own, HUMAN]


@pytest.mark.parametrize(
    "kind",
    [
        None,
        pa.null(),
        pa.string(),
        pa.float64(),
        pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())])),
        pa.list_(pa.struct([("from", pa.string()), ("value", pa.string()), ("w", pa.int8())])),
    ],
)
def test_a_parquet_manifest_without_conversations_gets_them(tmp_path: Path, kind: Any):
    table = pa.table({"audio": ["x.wav", "y.wav"], "id": pa.array([1, 2], pa.int16())})
    if kind is not None:
        table = table.append_column("conversation", pa.nulls(2, kind))
    pq.write_table(table, tmp_path / "m.parquet")
    build = published(tmp_path / "m.parquet", question=QUESTION)
    ((turn,),) = column(build)
    assert {name: value for name, value in turn.items() if value is not None} == HUMAN[0]
    assert lines(build, "rejected")[0]["conversation"] == HUMAN
    (path,) = build.store.sizes("data")
    assert pq.read_table(build.store.open(path)).schema.field("id").type == pa.int16()


def test_a_parquet_type_that_cannot_hold_the_question_is_widened(tmp_path: Path):
    kind = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]), 2)
    own = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "A?"}]
    rows = pa.array([own, None, own, None], kind)
    pq.write_table(pa.table({"audio": ["x"] * 4, "conversation": rows}), tmp_path / "m.parquet")
    build = published(tmp_path / "m.parquet", question=QUESTION)
    assert column(build) == [own, HUMAN]


def test_rejections_are_a_manifest_that_asks_the_same(tmp_path: Path):
    question = "<audio>\nWhich of <audio> and this?"
    records: list[Any] = [{"audio": ["x.wav", "y.wav"]}] * 4 + [{"audio": [], "id": 5}]
    build = published(write_lines(tmp_path / "m.jsonl", records), question=question)
    planned = {row.row: row for row in read_shard(build, 0)}
    linter = Linter(lint_rules(build.plan.settings, None))
    rejected = lines(build, "rejected")
    assert rejected[-1]["conversation"] == [{"from": "human", "value": question}]
    for line in rejected[:-1]:
        again = linter.lint(RawLine(0, 1, json.dumps(line).encode()))
        assert again.messages == planned[line["earwitness"]["row"]].messages


def test_without_a_question_rows_stay_as_they_came(tmp_path: Path):
    records = [{"audio": "x.wav", "conversation": OWN}, {"audio": "x.wav"}]
    build = published(write_lines(tmp_path / "m.jsonl", records))
    assert lines(build, "jsonl")[0]["conversation"] == OWN
    (left,) = lines(build, "rejected")
    assert "conversation" not in left
    assert left["earwitness"]["reason"] == "no_conversation"


def test_a_question_that_nobody_was_asked_changes_no_schema(tmp_path: Path):
    records = [{"audio": "x.wav", "conversation": [{"role": "user", "content": "A?"}]}] * 2
    asked = published(write_lines(tmp_path / "m.jsonl", records), question=QUESTION)
    (path,) = asked.store.sizes("data")
    kind: Any = pq.read_schema(asked.store.open(path)).field("conversation").type
    assert {field.name for field in kind.value_type} == {"role", "content"}


@pytest.mark.parametrize("prompt", ["You are an ear.", ""])
def test_the_card_names_question_and_system_prompt(tmp_path: Path, prompt: str):
    manifest = write_lines(tmp_path / "m.jsonl", [{"audio": "x.wav"}] * 2)
    build = published(manifest, question=QUESTION, system_prompt=prompt)
    card = build.store.read_bytes("README.md").decode()
    assert f"| question to records without a conversation | {QUESTION} |" in card
    assert f"| system prompt | {prompt or 'none'} |" in card


def test_a_card_without_a_question_says_nothing_of_one(tmp_path: Path):
    manifest = write_lines(tmp_path / "m.jsonl", [{"audio": "x.wav", "conversation": OWN}] * 2)
    card = published(manifest).store.read_bytes("README.md").decode()
    assert "question to records" not in card
    assert "| system prompt | You are a helpful assistant. |" in card
