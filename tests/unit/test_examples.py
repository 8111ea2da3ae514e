"""The sample manifest that `make demo` builds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
RECORDS = [json.loads(line) for line in (EXAMPLES / "manifest.jsonl").read_text().splitlines()]
GOOD = [record for record in RECORDS if "bad on purpose" not in record["tags"]]


def test_every_clip_of_a_good_record_is_there():
    missing = [
        clip for record in GOOD for clip in record["audio"] if not (EXAMPLES / clip).is_file()
    ]
    assert not missing


def test_exactly_two_records_are_bad_on_purpose():
    assert len(RECORDS) - len(GOOD) == 2


def test_every_clip_is_used_by_some_record():
    used = {clip for record in RECORDS for clip in record["audio"]}
    there = {f"clips/{path.name}" for path in (EXAMPLES / "clips").iterdir()}
    assert there <= used


def test_ids_are_integers_with_gaps():
    ids = [record["id"] for record in RECORDS]
    assert all(isinstance(number, int) for number in ids)
    assert ids != list(range(ids[0], ids[0] + len(ids)))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"])
def test_the_clips_come_in_many_containers(suffix):
    assert any(clip.endswith(suffix) for record in GOOD for clip in record["audio"])


def test_the_clips_stay_small():
    total_bytes = sum(path.stat().st_size for path in (EXAMPLES / "clips").iterdir())
    assert total_bytes < 1_500_000
