"""The campaign's hostile manifests in short, and a whole build over a mixture of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pandas as pd
import pytest
from workbench import Published, tone, write_clip

import earwitness
from earwitness.errors import ManifestError
from earwitness.manifest.unpack import split_lines
from tests.chaos import hostile_text, manifests
from tests.fuzz import headers as fuzzed_headers
from tests.fuzz import manifest as fuzzed_manifest
from tests.fuzz.mutate import mutate_bytes, mutate_json
from tests.fuzz.seeds import header_seeds, manifest_seeds


def broken(held: Any) -> list[Any]:
    return [one for one in held if one.failed]


def test_every_hostile_line_costs_itself_alone(tmp_path):
    assert not broken(manifests.hostile_lines(tmp_path))


def test_hostile_parquet_files_are_accounted_for_or_refused(tmp_path):
    assert not broken(manifests.hostile_files(tmp_path))


def test_mixtures_and_damaged_parquet_files_lose_no_row(tmp_path):
    held = [
        manifests.mixtures(tmp_path, seed=1, count=3),
        manifests.damaged_parquet(tmp_path, seed=1, count=40),
    ]
    assert not broken(held)


def test_giants_are_planned_in_bounded_memory(tmp_path):
    assert not broken(manifests.giants(tmp_path, line_gib=0.25, packed_gib=0.25))


def test_a_line_without_end_is_no_manifest():
    with pytest.raises(ManifestError, match="a line longer than"):
        list(split_lines(itertools.repeat(b"x" * 2**20), 2**20))


def test_a_build_over_a_mixture_publishes_what_pandas_and_datasets_load(
    tmp_path, build, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_clip(tmp_path / "0.wav", tone(300))
    # 40,001 turns are more than a stand-in should answer
    lines = [line for name, line, _ in hostile_text.lines() if "turns" not in name]
    data, _ = manifests.mixture(random.Random("build"), size=40)  # noqa: S311 - drawn the same
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_bytes(b"".join(line + b"\n" for line in lines) + data)
    counts = build(manifest, tmp_path / "out", max_rejected=1.0)
    rows = len(lines) + 40
    published = Published(tmp_path / "out")
    answers, rejections = published.answers(), published.rejections()
    assert counts["rows"] == len(answers) + len(rejections) == rows
    found = [row["earwitness"]["row"] for row in answers + rejections]
    assert sorted(found) == list(range(rows))
    frame = pd.read_parquet(published.folder / "data")
    assert len(frame) == len(answers)
    assert len(earwitness.load(str(tmp_path / "out"))) == len(answers)
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        str(published.folder), split="train", cache_dir=str(tmp_path / "hf")
    )
    assert loaded["answer"] == frame["answer"].tolist()


def test_fuzz_targets_hold_for_their_seeds_and_some_mutations():
    dice = random.Random("fuzz")  # noqa: S311 - the same mutations every time
    seeds = manifest_seeds()
    for seed in seeds:
        fuzzed_manifest.check(seed)
    for _ in range(600):
        change = dice.choice([mutate_json, mutate_bytes])
        fuzzed_manifest.check(change(dice.choice(seeds), dice))
    clips = header_seeds()
    for clip in clips:
        fuzzed_headers.check(clip)
    for _ in range(400):
        fuzzed_headers.check(mutate_bytes(dice.choice(clips), dice))
