"""A rejections file is a manifest wherever it lies: its clips are named absolutely."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_asked_conversation import OWN, lines, write_lines
from test_build_publish import published

import earwitness
from earwitness.builds.resolve import read_shard
from earwitness.manifest.lint import Linter, lint_rules
from earwitness.manifest.read import RawLine
from earwitness.settings import BuildSettings

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.builds.layout import Build


def rejected_audio(build: Build, column: str = "audio") -> list[Any]:
    return [row[column] for row in lines(build, "rejected")]


def with_audio(audio: Any, **others: Any) -> dict[str, Any]:
    return {"audio": audio, "conversation": OWN, **others}


@pytest.mark.parametrize(
    ("audio", "absolute"),
    [
        ("clips/a.wav", "{here}/clips/a.wav"),
        (["clips/a.wav"], ["{here}/clips/a.wav"]),
        (["a.wav", "../b.wav", "./c/../d.wav"], ["{here}/a.wav", "{up}/b.wav", "{here}/d.wav"]),
        ("/abs/a.wav", "/abs/a.wav"),
        ("file:///abs/a b.wav", "file:///abs/a b.wav"),
        (["s3://b/a.wav", "b.wav"], ["s3://b/a.wav", "{here}/b.wav"]),
        ("https://h/a.wav?X-Amz-Signature=1", "https://h/a.wav?X-Amz-Signature=1"),
    ],
)
def test_clips_are_named_absolutely_in_the_shape_they_came_in(
    tmp_path: Path, audio: Any, absolute: Any
):
    build = published(write_lines(tmp_path / "m.jsonl", [with_audio(audio)] * 2))
    here, up = str(tmp_path), str(tmp_path.parent)
    expected = json.loads(json.dumps(absolute).replace("{here}", here).replace("{up}", up))
    assert rejected_audio(build) == [expected]
    assert [row["audio"] for row in lines(build, "jsonl")] == [audio]


@pytest.mark.parametrize("root", ["s3://bucket/lake", "https://host/lake", "/lake"])
def test_clips_are_named_from_the_audio_root(tmp_path: Path, root: str):
    manifest = write_lines(tmp_path / "m.jsonl", [with_audio(["clips/a.wav"])] * 2)
    build = published(manifest, input={"audio_root": root})
    assert rejected_audio(build) == [[f"{root}/clips/a.wav"]]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"audio": ["a.wav"], "conversation": [{"from": "gpt", "value": "x"}]}, "turn_order"),
        ({"audio": ["a.wav"], "conversation": None}, "no_conversation"),
        ({"audio": ["a.wav", 3], "conversation": OWN}, "bad_audio"),
        ({"audio": ["a.wav", ""], "conversation": OWN}, "bad_audio"),
        ({"audio": ["a.wav", "data:audio/wav;base64,AA"], "conversation": OWN}, "bad_uri"),
        ({"audio": ["a.wav"] * 17, "conversation": OWN}, "too_many_clips"),
        ({"audio": {"path": "a.wav", "bytes": None}, "conversation": OWN}, "bad_audio"),
        ({"audio": [{"path": "a.wav"}], "conversation": OWN}, "bad_audio"),
    ],
)
def test_rows_that_planning_rejected_name_their_clips_absolutely(
    tmp_path: Path, record: Any, reason: str
):
    build = published(write_lines(tmp_path / "m.jsonl", [record, with_audio("a.wav")]))
    (row,) = lines(build, "rejected")
    assert row["earwitness"]["reason"] == reason
    text = json.dumps(record["audio"]).replace("a.wav", f"{tmp_path}/a.wav")
    assert row["audio"] == json.loads(text)


def test_a_name_beside_the_bytes_of_a_clip_is_no_address(tmp_path: Path):
    audio = {"bytes": b"RIFF", "path": "a.wav"}
    table = pa.table({"audio": [audio, None], "conversation": [OWN, OWN]})
    pq.write_table(table, tmp_path / "m.parquet")
    build = published(tmp_path / "m.parquet")
    assert rejected_audio(build)[0]["path"] == "a.wav"


@pytest.mark.parametrize(
    ("root", "path"), [("s3://bucket/lake", "../../other/a.wav"), ("s3://bucket", "../other/a.wav")]
)
def test_what_leads_out_of_the_bucket_does_not_become_an_address(
    tmp_path: Path, root: str, path: str
):
    manifest = write_lines(tmp_path / "m.jsonl", [with_audio(path), with_audio("a.wav")])
    build = published(manifest, input={"audio_root": root})
    assert rejected_audio(build) == [path]


def test_a_refused_address_stays_as_it_came(tmp_path: Path):
    manifest = write_lines(tmp_path / "m.jsonl", [with_audio("../a.wav"), with_audio("a.wav")])
    build = published(manifest, input={"trusted": False})
    (row,) = lines(build, "rejected")
    assert row["earwitness"]["reason"] == "address_refused"
    assert row["audio"] == "../a.wav"


@pytest.mark.parametrize("kind", ["text", "list"])
def test_rejections_of_a_parquet_manifest_keep_its_shape(tmp_path: Path, kind: str):
    audio: list[Any] = ["a.wav", "b.wav"] if kind == "text" else [["a.wav"], ["b.wav", "c.wav"]]
    pq.write_table(pa.table({"wavs": audio, "conversation": [OWN] * 2}), tmp_path / "m.parquet")
    build = published(tmp_path / "m.parquet", input={"audio_column": "wavs"})
    expected = f"{tmp_path}/b.wav"
    named = expected if kind == "text" else [expected, f"{tmp_path}/c.wav"]
    assert rejected_audio(build, "wavs") == [named]


def test_rejections_mean_the_same_clips_from_anywhere(tmp_path: Path):
    records = [with_audio(["clips/a.wav", "../b.wav"])] * 4
    build = published(write_lines(tmp_path / "m.jsonl", records))
    planned = {row.row: row for row in read_shard(build, 0)}
    elsewhere = BuildSettings(manifest="/elsewhere/m.jsonl", output="/o")
    linter = Linter(lint_rules(elsewhere, None))
    for row in lines(build, "rejected"):
        again = linter.lint(RawLine(0, 1, json.dumps(row).encode()))
        assert again.clips == planned[row["earwitness"]["row"]].clips


@pytest.mark.parametrize("formats", [["parquet"], ["jsonl"], ["parquet", "jsonl"]])
@pytest.mark.parametrize(
    "audios",
    [
        ["a.wav", "sub/b.wav"],
        [["a.wav"], ["b.wav", "s3://x/c.wav"]],
        ["a.wav", ["b.wav"]],
    ],
)
def test_load_gives_addresses_that_open_from_anywhere(
    tmp_path: Path, formats: list[str], audios: list[Any]
):
    records = [with_audio(audio) for audio in audios] + [with_audio("late.wav")] * 2
    manifest = write_lines(tmp_path / "m.jsonl", records)
    build = published(manifest, layout={"formats": formats})
    loaded = earwitness.load(build.output.root)["audio"]
    found = [audio if isinstance(audio, str) else list(audio) for audio in loaded]
    expected = json.loads(
        json.dumps(audios)
        .replace('"a.wav', f'"{tmp_path}/a.wav')
        .replace('"b.wav', f'"{tmp_path}/b.wav')
        .replace('"sub/', f'"{tmp_path}/sub/')
    )
    assert found == expected
    assert (
        list(earwitness.load_rejected(build.output.root)["audio"]) == [f"{tmp_path}/late.wav"] * 2
    )


def test_the_card_names_where_relative_clips_start(tmp_path: Path):
    manifest = write_lines(tmp_path / "m.jsonl", [with_audio("a.wav")] * 2)
    build = published(manifest, input={"audio_root": "/lake/one"})
    card = build.store.read_bytes("README.md").decode()
    assert "| relative clip paths start from | /lake/one |" in card
