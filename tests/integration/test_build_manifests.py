"""Other people's manifests in, and what readers of the dataset get out."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from workbench import Published, record, tone, write_clip, write_manifest

import earwitness
from earwitness.errors import ManifestError, SettingsError
from earwitness.settings import InputSettings, LayoutSettings


@pytest.fixture
def clips(tmp_path):
    """Two clips beside where manifests of these tests lie."""
    for number in range(2):
        write_clip(tmp_path / f"{number}.wav", tone(300 + 100 * number))
    return tmp_path


def test_a_parquet_manifest_keeps_its_types(clips, build):
    day = dt.date(2024, 2, 29)
    columns = {
        "audio": pa.array([["0.wav"], ["1.wav"]]),
        "conversation": pa.array([[{"from": "human", "value": "What?"}]] * 2),
        "at": pa.array([dt.datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC), None]),
        "local": pa.array([dt.datetime(2024, 1, 2, 3, 4, 5), None]),  # noqa: DTZ001 - naive on purpose
        "day": pa.array([day, None]),
        "price": pa.array([decimal.Decimal("1.10"), None]),
        "raw": pa.array([b"\xff\x00", None]),
        "small": pa.array([7, None], pa.int8()),
        "big": pa.array([2**63 + 1, None], pa.uint64()),
        "half": pa.array([0.1, None], pa.float32()),
        "kind": pa.array(["a", None]).dictionary_encode(),
        "lasts": pa.array([dt.timedelta(milliseconds=5), None]),
    }
    table = pa.table(columns)
    pq.write_table(table, clips / "manifest.parquet")
    build(clips / "manifest.parquet", clips / "out")
    (file,) = Published(clips / "out").folder.glob("data/*.parquet")
    found = pq.read_table(file).select(table.column_names)
    plain = table.set_column(
        table.column_names.index("kind"), "kind", pa.array(["a", None], pa.string())
    )
    assert found.schema.remove_metadata() == plain.schema
    assert found.to_pylist() == table.to_pylist()


def test_datasets_and_pandas_load_the_folder(clips, build, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(clips / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = [record(f"{number % 2}.wav", f"Number {number}?", id=number) for number in range(5)]
    del lines[3]["id"]
    manifest = write_manifest(clips / "manifest.jsonl", lines)
    build(manifest, clips / "out", layout=LayoutSettings(shard_rows=2))
    folder = Published(clips / "out").folder
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(clips / "hf"))
    assert loaded["id"] == [0, 1, 2, None, 4]
    assert loaded[4]["conversation"] == lines[4]["conversation"]
    output = datasets.load_dataset(str(clips / "out"), split="train", cache_dir=str(clips / "hf"))
    assert output.to_list() == loaded.to_list()
    frames = [pd.read_parquet(folder / "data")]
    assert pd.concat(frames)["answer"].tolist() == loaded["answer"]
    ours = earwitness.load(str(clips / "out"))
    assert ours["answer"].tolist() == loaded["answer"]
    assert str(ours["id"].dtype) == "Int64"
    assert ours["earwitness.row"].tolist() == list(range(5))


@pytest.fixture
def dataflow(tmp_path, monkeypatch):
    """DataFlow's sample layout, seen from the folder its users stand in."""
    write_clip(tmp_path / "example_data/audio_aqa_pipeline/test_1.wav", tone(300))
    line = {
        "audio": ["../example_data/audio_aqa_pipeline/test_1.wav"],
        "conversation": [{"from": "human", "value": "Transcribe the audio into Chinese."}],
    }
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    return line


def test_dataflows_sample_is_built_from_a_sibling_folder(dataflow, build, tmp_path):
    write_manifest(tmp_path / "example_data/sample.jsonl", [dataflow])
    counts = build("../example_data/sample.jsonl", "out")
    assert counts["answered"] == 1
    (row,) = Published(tmp_path / "run/out").answers()
    assert {name: row[name] for name in dataflow} == dataflow


def test_clips_named_from_the_working_directory_are_told_how_to_be_found(dataflow, build, tmp_path):
    manifest = write_manifest(tmp_path / "example_data/deep/sample.jsonl", [dataflow])
    with pytest.raises(ManifestError, match=r"add --audio-root \."):
        build(manifest, "out")
    counts = build(manifest, "out", input=InputSettings(audio_root="."))
    assert counts["answered"] == 1


def test_records_with_audio_alone_are_asked_the_question(clips, build):
    lines = [{"audio": "0.wav", "id": 1}, record("1.wav", "Its own?", id=2)]
    manifest = write_manifest(clips / "manifest.jsonl", lines)
    build(manifest, clips / "out", question="caption")
    asked = planned_texts(clips / "out")
    assert asked == ["Describe the sound in this audio clip.", "Its own?"]
    assert [row["id"] for row in Published(clips / "out").answers()] == [1, 2]
    asked = [{"from": "human", "value": "Describe the sound in this audio clip."}]
    assert Published(clips / "out").answers()[0]["conversation"] == asked


def test_the_output_loads_after_every_night(clips, build, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(clips / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    for night in range(2):
        lines = [{"audio": "0.wav", "id": number} for number in range(2 + night)]
        manifest = write_manifest(clips / "manifest.jsonl", lines)
        build(manifest, clips / "out", question="caption")
        loaded = datasets.load_dataset(str(clips / "out"), split="train")
        assert loaded["id"] == list(range(2 + night))
        assert loaded[0]["conversation"][0]["value"] == "Describe the sound in this audio clip."


def planned_texts(output) -> list[str]:
    plan = Published(output).folder / "plan/shard-00000.jsonl"
    rows = [json.loads(line) for line in plan.read_text().splitlines()]
    return [row["messages"][-1]["content"][-1]["text"] for row in rows]


def test_openai_messages_under_other_names(clips, build):
    content = [{"type": "audio"}, {"type": "text", "text": "What is it?"}]
    lines: list[dict[str, Any]] = [
        {"wavs": ["0.wav"], "messages": [{"role": "user", "content": content}], "answer": "old"},
        {"wavs": "1.wav", "messages": [{"role": "user", "content": "Plain?"}], "answer": "old"},
    ]
    manifest = write_manifest(clips / "manifest.jsonl", lines)
    source = InputSettings(audio_column="wavs", conversation_column="messages")
    with pytest.raises(SettingsError, match="--answer-column"):
        build(manifest, clips / "out", input=source)
    layout = LayoutSettings(answer_column="heard")
    counts = build(manifest, clips / "out", input=source, layout=layout)
    assert counts["answered"] == 2
    for row, line in zip(Published(clips / "out").answers(), lines, strict=True):
        assert row.pop("heard").startswith("stand-in:")
        del row["earwitness"]
        assert row == line


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_one_format_alone(clips, build, form):
    manifest = write_manifest(clips / "manifest.jsonl", [record("0.wav", id=1)])
    build(manifest, clips / "out", layout=LayoutSettings(formats=(form,)))
    folder = Published(clips / "out").folder
    files = [*folder.glob("data/*"), *folder.glob("jsonl/*")]
    assert [file.suffix for file in files] == [f".{form}"]
    frame = earwitness.load(str(clips / "out"))
    assert frame["id"].tolist() == [1]
    assert frame["earwitness.finish_reason"].tolist() == ["stop"]


def test_rejections_are_a_manifest_themselves(clips, build):
    lines = [record("0.wav", id=1), record("late.wav", id=2), record("0.wav", "", id=3)]
    build(write_manifest(clips / "manifest.jsonl", lines), clips / "out", max_rejected=1)
    told = earwitness.load_rejected(str(clips / "out"))
    assert told["id"].tolist() == [2, 3]
    assert told["earwitness.reason"].tolist() == ["clip_missing", "empty_turn"]
    write_clip(clips / "late.wav", tone(777))
    (rejected,) = Published(clips / "out").folder.glob("rejected/*")
    counts = build(rejected, clips / "again")
    assert (counts["rows"], counts["answered"]) == (2, 1)
    (row,) = Published(clips / "again").answers()
    assert row["id"] == 2
    assert set(row) == {"audio", "conversation", "id", "answer", "earwitness"}
    assert "reason" not in row["earwitness"]
    (left,) = Published(clips / "again").rejections()
    assert (left["id"], left["earwitness"]["row"]) == (3, 1)
