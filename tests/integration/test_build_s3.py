"""The same build with everything on object storage, and over http."""

from __future__ import annotations

import gzip
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import s3fs
import zstandard
from workbench import Published, S3Server, clip_bytes, record, write_manifest

import earwitness
from earwitness.errors import CredentialsError
from earwitness.settings import InputSettings, LayoutSettings

if TYPE_CHECKING:
    from pathlib import Path

CLIPS = 20
LAYOUT = LayoutSettings(name="twin", shard_rows=15, batch_rows=8)


@dataclass
class Bucket:
    """A bucket of a test's own."""

    server: S3Server
    name: str

    def __post_init__(self) -> None:
        s3fs.S3FileSystem.clear_instance_cache()
        self._fs = s3fs.S3FileSystem()
        self._fs.mkdir(self.name)

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    @property
    def folder(self) -> Path:
        return self.server.folder / self.name

    def put(self, path: str, data: bytes) -> str:
        self._fs.pipe_file(f"{self.name}/{path}", data)
        return f"{self.uri}/{path}"

    def downloads(self) -> int:
        return self.server.downloads(self.name, "lake/clips/")


@pytest.fixture
def bucket(s3):
    return Bucket(s3, f"bucket-{uuid.uuid4().hex[:8]}")


def records() -> list[dict[str, Any]]:
    return [
        *(record(f"clips/{number}.wav", id=number) for number in range(CLIPS)),
        record(["clips/18.wav", "../lake/clips/19.wav"], "Which is higher?", id=100),
        record("clips/none.wav", id=101),
    ]


def data_files(published: Published) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted(published.folder.glob("data/*"))
        + sorted(published.folder.glob("jsonl/*"))
    }


def test_manifest_clips_and_output_on_s3(bucket, build, stand_in, tmp_path):
    lake = tmp_path / "lake"
    (lake / "clips").mkdir(parents=True)
    for number in range(CLIPS):
        data = clip_bytes(tmp_path, 300 + number)
        (lake / f"clips/{number}.wav").write_bytes(data)
        bucket.put(f"lake/clips/{number}.wav", data)
    manifest = write_manifest(lake / "manifest.jsonl", records())
    uri = bucket.put("lake/manifest.jsonl", manifest.read_bytes())

    counts = build(uri, f"{bucket.uri}/out", layout=LAYOUT)
    assert (counts["generated"], counts["rejected"]) == (CLIPS + 1, 1)
    assert bucket.downloads() == CLIPS
    remote = Published(bucket.folder / "out")
    assert len(data_files(remote)) == 4

    build(manifest, tmp_path / "out", layout=LAYOUT)
    assert data_files(remote) == data_files(Published(tmp_path / "out"))

    before = stand_in.asked()
    counts = build(uri, f"{bucket.uri}/out", layout=LAYOUT)
    assert (stand_in.asked() - before, bucket.downloads()) == (0, CLIPS)
    assert counts["reused"] == CLIPS + 1

    frame = earwitness.load(f"{bucket.uri}/out")
    assert frame["id"].tolist() == [*range(CLIPS), 100]
    rejected = earwitness.load_rejected(f"{bucket.uri}/out")
    assert rejected[["id", "earwitness.reason"]].to_numpy().tolist() == [[101, "clip_missing"]]


def test_local_output_of_a_manifest_and_clips_on_s3(bucket, build, tmp_path):
    bucket.put("lake/clips/a.wav", clip_bytes(tmp_path, 300))
    packed = gzip.compress(write_manifest(tmp_path / "m", [record("clips/a.wav")]).read_bytes())
    counts = build(bucket.put("lake/manifest.jsonl.gz", packed), tmp_path / "out")
    assert counts["answered"] == 1


def test_rejections_on_s3_are_a_manifest_and_the_output_has_its_page(
    bucket, build, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    bucket.put("lake/clips/a.wav", clip_bytes(tmp_path, 300))
    lines = [{"audio": "clips/a.wav", "id": 1}, {"audio": ["../lake/clips/b.wav"], "id": 2}]
    manifest = write_manifest(tmp_path / "manifest.jsonl", lines).read_bytes()
    build(bucket.put("lake/manifest.jsonl", manifest), f"{bucket.uri}/out", question="What?")
    (rejected,) = Published(bucket.folder / "out").rejections()
    assert rejected["audio"] == [f"{bucket.uri}/lake/clips/b.wav"]
    assert earwitness.load(f"{bucket.uri}/out")["audio"].tolist() == [
        f"{bucket.uri}/lake/clips/a.wav"
    ]
    loaded = datasets.load_dataset(str(bucket.folder / "out"), split="train")
    assert loaded["id"] == [1]

    bucket.put("lake/clips/b.wav", clip_bytes(tmp_path, 400))
    (file,) = Published(bucket.folder / "out").folder.glob("rejected/*")
    uri = f"{bucket.uri}/{file.relative_to(bucket.folder)}"
    counts = build(uri, tmp_path / "again")
    assert (counts["rows"], counts["answered"]) == (1, 1)
    (row,) = Published(tmp_path / "again").answers()
    assert row["conversation"] == [{"from": "human", "value": "What?"}]


def test_a_packed_manifest_and_its_clips_over_http(web, build, stand_in, tmp_path):
    for number in range(3):
        web.put(f"/lake/clips/{number}.wav", clip_bytes(tmp_path, 300 + number))
    lines = [record(f"clips/{number}.wav", id=number) for number in range(3)]
    lines.append(record(f"{web.url}/lake/clips/0.wav", id=3))
    plain = write_manifest(tmp_path / "manifest.jsonl", lines).read_bytes()
    uri = web.put("/lake/manifest.jsonl.zst", zstandard.compress(plain))
    before = stand_in.asked()
    # a manifest from the web is not trusted, and this server is not a public one
    allowed = InputSettings(allow=(web.url.removeprefix("http://"),))
    counts = build(uri, tmp_path / "out", input=allowed)
    # one question is asked by two rows
    assert (counts["answered"], stand_in.asked() - before) == (4, 3)
    clips = {path: count for path, count in web.downloads.items() if "clips" in path}
    assert clips == {f"/lake/clips/{number}.wav": 1 for number in range(3)}
    assert list(Published(tmp_path / "out").by_id()) == [0, 1, 2, 3]


def test_a_clip_on_s3_that_changes_is_asked_about_again(bucket, build, stand_in, tmp_path):
    for number in range(2):
        bucket.put(f"lake/clips/{number}.wav", clip_bytes(tmp_path, 300 + number))
    lines = [record(f"clips/{number}.wav", id=number) for number in range(2)]
    manifest = write_manifest(tmp_path / "manifest.jsonl", lines).read_bytes()
    uri = bucket.put("lake/manifest.jsonl", manifest)
    build(uri, tmp_path / "out")
    bucket.put("lake/clips/1.wav", clip_bytes(tmp_path, os.getpid() % 1000 + 400))
    before, downloaded = stand_in.asked(), bucket.downloads()
    build(uri, tmp_path / "out")
    assert (stand_in.asked() - before, bucket.downloads() - downloaded) == (1, 1)


def test_refused_credentials_fail_the_build_and_reject_nothing(
    bucket, build, tmp_path, monkeypatch
):
    bucket.put("lake/clips/a.wav", clip_bytes(tmp_path, 300))
    lines = [record(f"{bucket.uri}/lake/clips/a.wav")]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stolen")
    with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID"):
        build(write_manifest(tmp_path / "manifest.jsonl", lines), tmp_path / "out")
    assert not (tmp_path / "out/latest.json").exists()
