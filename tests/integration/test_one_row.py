"""One row of any kind ends as one rejection: check and build agree, and the rest goes on."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from workbench import Published, clip_bytes, record, tone, write_clip, write_manifest

from earwitness.addresses import join_uri
from earwitness.builds.prepare import resolve_settings
from earwitness.check import check_clips, lint_manifest
from earwitness.settings import BuildSettings, InputSettings

if TYPE_CHECKING:
    from pathlib import Path

    from workbench import S3Server

GOOD = 3


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "2")


def checked(manifest: Path, **source: Any) -> dict[str, int]:
    given = BuildSettings(manifest=str(manifest), output="o", input=InputSettings(**source))
    settings = resolve_settings(given)
    report = lint_manifest(settings)
    check_clips(settings, report)
    return {reason: found.rows for reason, found in report.rejections.items()}


AUDIO = {
    "a name of 256 bytes": ("x" * 252 + ".wav", "clip_missing"),
    "a name of 300 bytes in letters of three": ("声" * 100 + ".wav", "clip_missing"),
    "a path of 5000 bytes": ("d/" * 2500 + "x.wav", "clip_missing"),
    "an absolute path of 5000 bytes": ("/d" * 2500, "clip_missing"),
    "a file in base64": (base64.b64encode(bytes(range(256)) * 600).decode(), "clip_missing"),
    "a NUL": ("a\0.wav", "bad_uri"),
    "a NUL in a file address": ("file:///a%00.wav", "bad_uri"),
    "a file address of 5000 bytes": ("file:///" + "x" * 5000, "clip_missing"),
    "a file address with half a host": ("file://[/a.wav", "bad_uri"),
    "a file for a folder": ("a.wav/b.wav", "clip_missing"),
    "a user nobody knows": ("~nobody/a.wav", "clip_missing"),
    "control characters": ("a\n\r\t\x7f.wav", "clip_missing"),
}


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("place", [0, 30])
@pytest.mark.parametrize("kind", AUDIO)
def test_check_ends_one_row(tmp_path: Path, kind: str, place: int, *, trusted: bool):
    write_clip(tmp_path / "a.wav", tone(440))
    audio, reason = AUDIO[kind]
    records = [record("a.wav", id=number) for number in range(place + GOOD)]
    records.insert(place, record(audio))
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    found = checked(manifest, trusted=trusted)
    assert found in ({reason: 1}, {} if trusted else {"address_refused": 1})


def test_build_agrees_with_check_on_each(tmp_path: Path, build: Any):
    write_clip(tmp_path / "a.wav", tone(440))
    records = [record(audio, id=number) for number, (audio, _) in enumerate(AUDIO.values())]
    records += [record("a.wav", id=100 + number) for number in range(len(AUDIO))]
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    counts = build(manifest, tmp_path / "out")
    assert counts["answered"] == len(AUDIO)
    assert counts["reasons"] == checked(manifest)
    rejected = {row["id"]: row for row in Published(tmp_path / "out").rejections()}
    for number, (audio, reason) in enumerate(AUDIO.values()):
        # a clip is named absolutely, and what is no address as it came
        named = audio if reason == "bad_uri" else join_uri(str(tmp_path), audio)
        assert rejected[number]["audio"] == [named]
        assert rejected[number]["earwitness"]["reason"] == reason
        assert len(rejected[number]["earwitness"]["detail"]) < 1500


def test_the_cases_from_the_field(tmp_path: Path, build: Any):
    write_clip(tmp_path / "a.wav", tone(440))
    lines = [json.dumps(record("a.wav")) for _ in range(4)]
    for number, audio in enumerate(["x" * 300 + ".wav", base64.b64encode(b"RIFF" * 999).decode()]):
        manifest = tmp_path / f"{number}.jsonl"
        manifest.write_text("\n".join([json.dumps({**record("a"), "audio": audio}), *lines]))
        counts = build(manifest, tmp_path / f"out-{number}")
        assert (counts["answered"], counts["reasons"]) == (4, {"clip_missing": 1})


@pytest.mark.parametrize("clips", [1, 20])
def test_one_object_may_be_named_in_several_ways(
    tmp_path: Path, s3: S3Server, build: Any, clips: int
):
    bucket = f"spelled-{clips}"
    (s3.folder / bucket).mkdir(exist_ok=True)
    names = [f"{number}.wav" for number in range(clips)]
    for number, name in enumerate(names):
        data = clip_bytes(tmp_path, 300 + 10 * number)
        (s3.folder / bucket / name).write_bytes(data)
    ways = ("s3", "s3a", "S3", "S3A")
    records = [record(f"{way}://{bucket}/{name}") for name in names for way in ways]
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    assert checked(manifest) == {}
    counts = build(manifest, tmp_path / "out")
    assert (counts["answered"], counts["rejected"]) == (4 * clips, 0)
    assert build(manifest, tmp_path / "out")["reused"] == 4 * clips


def test_one_file_may_be_named_in_several_ways(tmp_path: Path, build: Any):
    path = write_clip(tmp_path / "a b.wav", tone(440))
    ways = ["a b.wav", str(path), path.as_uri(), f"FILE://{path}", "./x/../a b.wav", f"/{path}"]
    ways += [f"file://localhost{path}", f"{tmp_path}//a b.wav"]
    manifest = write_manifest(tmp_path / "m.jsonl", [record(way) for way in ways])
    assert checked(manifest) == {}
    assert build(manifest, tmp_path / "out")["answered"] == len(ways)


@pytest.mark.parametrize("clips", [1, 20])
@pytest.mark.parametrize("bucket", ["No Bucket!", "a", "x" * 300, "..", "%00"])
def test_a_bucket_that_cannot_be_one_ends_its_own_rows(
    tmp_path: Path,
    s3: S3Server,  # noqa: ARG001 - its credentials are in the environment
    bucket: str,
    clips: int,
):
    write_clip(tmp_path / "a.wav", tone(440))
    records = [record(f"s3://{bucket}/{number}.wav") for number in range(clips)]
    manifest = write_manifest(tmp_path / "m.jsonl", [*records, record("a.wav")])
    found = checked(manifest)
    assert sum(found.values()) == clips
    assert set(found) <= {"bad_uri", "clip_missing", "access_denied"}
