"""The quick way through a manifest gives what the careful way gives, line by line and in all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.manifest.lint import Linter, LintRules
from earwitness.manifest.parse import parse_record
from earwitness.manifest.planned import plan_line
from earwitness.manifest.read import RawLine
from earwitness.manifest.schema import MAX_CELLS, SchemaBuilder, Shapes
from earwitness.manifest.signature import Signatures

RULES = LintRules(audio_root="/data/set", system_prompt="Listen.", question="What is it?")

_names = st.sampled_from(["id", "audio", "conversation", "from", "value", "a b", "é", 'q"'])
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**53, 2**53 + 1, -(2**53) - 1, 2**64, 10**30])
    | st.sampled_from([0.0, -0.0, 1.0, 1.5, 1e300, 2.0**70, float("inf"), float("nan")])
    | st.sampled_from(["", "a.wav", "s3://b/k.wav", "human", "two\nlines", 'a "quote"', "中文"])
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)
_turns = st.just([{"from": "human", "value": "What is it?"}]) | _values
_records = st.fixed_dictionaries(
    {"audio": st.just(["a.wav"]) | _values, "conversation": _turns},
    optional={"id": _scalars, "extra": _values},
)
_damage = st.sampled_from(
    ['"id":2,', '"audio":["b"],', '"', "\\", "{", "]", ",", " ", "1", ".0", "e9", "-", "\\ud800"]
)


def bytes_of(record: Any, *, spaced: bool = True) -> bytes:
    separators = None if spaced else (",", ":")
    return json.dumps(record, ensure_ascii=False, separators=separators).encode()


@st.composite
def _lines(draw: Any) -> list[bytes]:
    """Lines of a few makes, each many times, some of them damaged a little."""
    makes = draw(st.lists(_records, min_size=1, max_size=3))
    lines = []
    for record in draw(st.lists(st.sampled_from(makes), min_size=1, max_size=8)):
        text = bytes_of(record, spaced=draw(st.booleans())).decode()
        if draw(st.integers(0, 3)) == 0:
            at = draw(st.integers(0, len(text)))
            text = text[:at] + draw(_damage) + text[at:]
        lines.append(text.encode())
    return lines


@given(_lines())
def test_a_line_read_quickly_is_the_line_read_carefully(lines: list[bytes]) -> None:
    signatures = Signatures()
    for raw in lines:
        quick = signatures.parse(raw)
        if quick is not None:
            record, rejection = parse_record(raw)
            assert rejection is None
            assert repr(quick[0]) == repr(record)


@given(_lines())
def test_a_row_planned_quickly_is_the_row_planned_carefully(lines: list[bytes]) -> None:
    linter = Linter(RULES)
    for row, raw in enumerate(lines):
        planned, text, _ = linter.plan(RawLine(row, row + 1, raw))
        careful, record_text = Linter(RULES).judge(row, raw)
        assert repr(planned) == repr(careful)
        assert text == plan_line(record_text, careful)


@given(_lines(), st.integers(1, 3))
def test_the_schema_is_the_same_with_signatures_and_without(lines: list[bytes], times: int) -> None:
    signatures, quick, careful = Signatures(), SchemaBuilder(), SchemaBuilder()
    for raw in lines * times:
        found = signatures.parse(raw)
        record, rejection = (found[0], None) if found else parse_record(raw)
        if record is not None and rejection is None:  # what is rejected has no part in it
            size_bytes = 2**25 if record.get("id") is None else 10  # some buffers end early
            quick.add(record, size_bytes, found[1] if found else None)
            careful.add(record, size_bytes)
    assert quick.finish() == careful.finish()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"id": 1, "id": 1}',
        b'{"id": 1, "n": {"a": 1, "a": 1}}',
        b'{"id": 1, "\\u0069d": 1}',
        b'{"id": 9007199254740993}',
        b'{"id": 123456789012345678901234567890}',
        b'{"id": NaN}',
        b'{"id": "\\ud800"}',
        b'{"id": "\xff"}',
        b'{"id": "a \\" quote"}',
        b'{"id": ' + b"[" * 50 + b"]" * 50 + b"}",
        b"[1]",
        b"",
    ],
)
def test_what_is_out_of_the_ordinary_has_no_signature(raw: bytes) -> None:
    signatures = Signatures()
    assert signatures.parse(b'{"id": 1}') is not None
    assert signatures.parse(raw) is None


def test_a_record_of_another_make_is_not_taken_for_the_last_ones() -> None:
    signatures = Signatures()
    lines = [
        b'{"id": 1, "n": 1}',
        b'{"id": 1, "n": 1.0}',
        b'{"id": 1, "n": null}',
        b'{"id": 1, "m": 1}',
        b'{"id": 1}',
        b'{"id": [1], "n": 1}',
        b'{"id": ["a"], "n": 1}',
        b'{"id": ["a", "b"], "n": 1}',
    ]
    found = [signatures.parse(raw) for raw in [*lines, *lines]]
    makes = [one[1] for one in found if one is not None]
    assert len(makes) == 2 * len(lines)
    assert len(set(makes)) == len(lines)
    assert makes[: len(lines)] == makes[len(lines) :]


def test_records_without_end_of_makes_do_not_fill_the_memory() -> None:
    signatures = Signatures()
    for number in range(3000):
        assert signatures.parse(b'{"f%d": 1}' % number) is not None
    assert len(signatures._known) <= 1024


def test_a_record_counts_as_often_as_it_is_there() -> None:
    record = {"f": [{str(key): 0 for key in range(100)}] * 64}
    assert Shapes().misfits([(record, 1)]) == set()
    assert Shapes().misfits([(record, MAX_CELLS // 6400 + 1)]) == {"f"}
