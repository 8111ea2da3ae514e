"""The benchmarks' suite: what its page keeps, and what a module that fails does to the others."""

from __future__ import annotations

import pytest

from tests.bench.__main__ import MODULES, PAGE, PART, run_suite
from tests.bench.page import Machine, generated_part, marks, put_between, taken_from
from tests.bench.table import Row

MACHINE = Machine((("processor", "a | b"), ("cores", "2")))
ROWS = [
    Row("speed", "5 s", "< 6 s", met=True, script="python -m x", note="beside it:\n4 s"),
    Row("GPU | peak", "not measured", "", met=None, script=""),
]


def test_a_new_run_replaces_only_what_is_between_the_marks():
    page = put_between("# Title\n\nBy hand.\n", "table", "old")
    page += "\n## What limits it\n\nAlso by hand.\n"
    again = put_between(page, "table", "new")
    assert again == page.replace("old", "new")
    assert taken_from(again, "table") == "new"


def test_parts_of_other_names_stay():
    page = put_between(put_between("# Title", "one", "1"), "two", "2")
    again = put_between(page, "one", "uno")
    assert (taken_from(again, "one"), taken_from(again, "two")) == ("uno", "2")


def test_a_page_that_is_not_there_yet_is_made():
    assert taken_from(put_between("", "table", "text"), "table") == "text"


def test_writing_the_same_twice_changes_nothing():
    page = put_between("# Title", "table", "text")
    assert put_between(page, "table", "text") == page


@pytest.mark.parametrize("kept", [0, 1])
def test_a_mark_without_the_other_is_refused(kept: int):
    with pytest.raises(ValueError, match="once, in this order"):
        put_between(f"# Title\n{marks('table')[kept]}\n", "table", "text")


def test_marks_in_the_wrong_order_are_refused():
    begin, end = marks("table")
    with pytest.raises(ValueError, match="once, in this order"):
        put_between(f"{end}\n{begin}\n", "table", "text")


def test_every_row_is_one_line_of_the_table():
    part = generated_part(ROWS, MACHINE)
    assert "| speed | 5 s | < 6 s | yes | beside it: 4 s | `python -m x` |" in part
    assert r"| GPU \| peak | not measured |  |  |  |  |" in part


def test_the_machine_is_told():
    assert r"| processor | a \| b |" in generated_part(ROWS, MACHINE)


def test_a_module_that_fails_gives_a_row_and_the_others_go_on(capfd):
    rows, failed = run_suite(["no_such_benchmark", "neither"])
    assert failed == ["no_such_benchmark", "neither"]
    assert [(row.measure, row.value, row.met) for row in rows] == [
        ("no_such_benchmark", "failed", None),
        ("neither", "failed", None),
    ]
    assert "No module named" in rows[0].note
    assert "[2/2] neither" in capfd.readouterr().out


def test_the_page_has_a_place_for_the_table():
    begin, end = marks(PART)
    page = PAGE.read_text(encoding="utf-8")
    assert page.index(begin) < page.index(end)


def test_every_benchmark_of_the_suite_is_named_once():
    assert len(set(MODULES)) == len(MODULES)
