"""Files of other kinds are told from manifests by their first bytes; doubt refuses nothing."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earwitness.errors import ManifestError
from earwitness.manifest.kinds import check_kind

RECORD = b'{"audio": ["a.wav"]}'
DAMAGED = [
    b"nope",
    b"[[[" * 99,
    b"[" * 9 + b"]" * 9,
    b"{",
    b"[1]",
    b"a,b",
    b"\xff",
    b"[[",
    b'{"audio": [',
    b"null",
    b"{'a': 1}",
]


@given(st.binary(max_size=400))
def test_any_bytes_are_judged_without_another_error(head: bytes):
    with suppress(ManifestError):
        check_kind(head, "m.jsonl")


@given(
    before=st.lists(st.sampled_from(DAMAGED), max_size=5),
    after=st.lists(st.sampled_from([*DAMAGED, b"["]), max_size=5),
)
def test_json_lines_with_damaged_lines_stay_a_manifest(before: list[bytes], after: list[bytes]):
    check_kind(b"\n".join([*before, RECORD, *after]), "m.jsonl")


@pytest.mark.parametrize("head", [RECORD, b"\xef\xbb\xbf" + RECORD, b"\n\n" + RECORD + b"\n", b"{"])
def test_a_manifest_is_not_refused(head: bytes):
    check_kind(head, "m.jsonl")


def test_a_first_line_that_is_longer_than_what_is_judged_is_not_refused():
    check_kind(b"x" * 2**18, "m.jsonl")
    check_kind(b"[" * 2**18, "m.jsonl")
    check_kind(b"[" * 2**17 + b"]" * 2**17 + b"\n", "m.jsonl")
    check_kind(b'{"audio": "' + b"x" * 2**18, "m.jsonl")


def test_a_json_array_is_known_although_its_line_is_longer_than_what_is_judged():
    with pytest.raises(ManifestError, match="one JSON array"):
        check_kind(b"[" + b",".join([RECORD] * 9999), "m.json")


def test_an_array_with_one_object_a_line_is_known():
    with pytest.raises(ManifestError, match="one JSON array"):
        check_kind(b"[" + RECORD + b",\n" + RECORD + b"\n]\n", "m.json")


def test_an_object_over_many_lines_is_known_although_it_is_longer_than_what_is_judged():
    lines = [b"{", b'  "audio": [', *[b'    "a.wav",'] * 9999]
    with pytest.raises(ManifestError, match="JSON spread over several lines"):
        check_kind(b"\n".join(lines), "m.json")
