"""Fields that change what a record asks are refused until somebody decides about them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from earwitness.check import lint_manifest
from earwitness.errors import SettingsError
from earwitness.manifest.lint import Linter, lint_rules
from earwitness.manifest.planned import parse_plan_line
from earwitness.manifest.read import RawLine
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

TURNS = [{"from": "human", "value": "What is it?"}]
CHANGING = [
    ("offset", 301.75),
    ("offset", 3),
    ("offset", "12.5"),
    ("offset", -1.0),
    ("system", "You are a doctor."),
    ("system_prompt", "You are a doctor."),
    ("tools", [{"type": "function"}]),
    ("tools", '[{"name": "search"}]'),
    ("functions", [{"name": "search"}]),
    ("images", ["a.png"]),
    ("videos", ["a.mp4"]),
    ("history", [["Hello", "Hi"]]),
]
HARMLESS = [
    ("offset", 0),
    ("offset", 0.0),
    ("offset", None),
    ("offset", "0.0"),
    ("offset", ""),
    ("offset", float("nan")),
    ("offset", False),
    ("system", None),
    ("system", " "),
    ("system", {"os": "linux"}),
    ("system", 3),
    ("tools", []),
    ("tools", "[]"),
    ("images", [None]),
    ("images", []),
    ("history", "has had a cold"),
    ("duration", 3.5),
    ("start", 1.0),
    ("instruction", "Transcribe."),
    ("text", "offset"),
]


def line(name: str, value: Any, row: int = 7) -> RawLine:
    record = {"audio": ["a.wav"], "conversation": TURNS, name: value}
    return RawLine(row, row + 1, json.dumps(record).encode())


def linter(**settings: Any) -> Linter:
    return Linter(lint_rules(BuildSettings(manifest="/m/a.jsonl", output="/o", **settings), None))


@pytest.mark.parametrize(("name", "value"), CHANGING)
def test_a_field_that_changes_what_is_asked_is_refused_with_the_option(name: str, value: Any):
    for ways in (linter().plan, linter().lint):
        with pytest.raises(SettingsError, match=rf"row 7\b.*'{name}'.*--ignore-fields {name}\b"):
            ways(line(name, value))


@pytest.mark.parametrize(("name", "value"), CHANGING)
def test_a_field_named_by_the_option_is_carried_through(name: str, value: Any):
    ignoring = linter(input={"ignore_fields": [name]})
    planned, stored, _ = ignoring.plan(line(name, value))
    assert planned.rejection is None
    record = parse_plan_line(stored).record
    assert record
    assert record[name] == value


@pytest.mark.parametrize(("name", "value"), HARMLESS)
def test_a_field_that_says_nothing_about_what_is_asked_is_carried_through(name: str, value: Any):
    assert linter().lint(line(name, value)).rejection is None


def test_every_row_is_looked_at():
    judge = linter().plan
    for row in range(5):
        judge(line("offset", 0.0, row))
    with pytest.raises(SettingsError, match="row 5"):
        judge(line("offset", 2.0, 5))


def test_a_rejected_row_is_refused_as_well():
    raw = b'{"audio": [], "offset": 3.0}'
    with pytest.raises(SettingsError, match="offset"):
        linter().lint(RawLine(0, 1, raw))


def test_a_column_that_is_read_is_no_field_beside_it():
    turns = linter(input={"conversation_column": "history"})
    record = {"audio": ["a.wav"], "history": TURNS}
    assert turns.lint(RawLine(0, 1, json.dumps(record).encode())).rejection is None


@pytest.mark.parametrize("given", ["offset, system", ["offset", "system"], ["offset,system"]])
def test_the_option_takes_several_names(given: Any):
    settings = BuildSettings(manifest="m", output="o", input={"ignore_fields": given})
    assert settings.input.ignore_fields == ("offset", "system")


def test_a_build_may_go_on_with_other_ignored_fields():
    plain = BuildSettings(manifest="m", output="o")
    ignoring = BuildSettings(manifest="m", output="o", input={"ignore_fields": ("offset",)})
    assert plain.frozen_digest() == ignoring.frozen_digest()


def test_the_fields_of_a_parquet_manifest_are_looked_at(tmp_path: Path):
    table = pa.table(
        {"audio": ["a.wav", "b.wav"], "conversation": [TURNS, TURNS], "offset": [None, 1.5]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    settings = BuildSettings(manifest=str(tmp_path / "m.parquet"), output=str(tmp_path / "o"))
    with pytest.raises(SettingsError, match=r"row 1\b.*'offset'"):
        lint_manifest(settings)
