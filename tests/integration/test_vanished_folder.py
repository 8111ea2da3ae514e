"""A folder that is gone fails the shard: nothing is rejected, and it goes on when it is back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from workbench import Published, WebServer, clip_bytes, record, tone, write_clip, write_manifest

from earwitness.errors import ShardFailedError
from earwitness.settings import EngineSettings, InputSettings, LayoutSettings
from flows.retry_failed_shards import retry_failed_shards

if TYPE_CHECKING:
    from pathlib import Path

    from workbench import StandIn


def make(folder: Path, clips: int) -> Path:
    for number in range(clips):
        write_clip(folder / "clips" / f"{number}.wav", tone(300 + 10 * number))
    records = [record(f"clips/{number}.wav", id=number) for number in range(clips)]
    return write_manifest(folder / "m.jsonl", records)


def hide(folder: Path) -> Path:
    return (folder / "clips").rename(folder / "unmounted")


@pytest.mark.parametrize("clips", [1, 3, 15])
def test_all_clips_missing_fail_the_shard_and_reject_none(tmp_path: Path, build: Any, clips: int):
    manifest, out = make(tmp_path, clips), tmp_path / "out"
    away = hide(tmp_path)
    with pytest.raises(ShardFailedError) as caught:
        build(manifest, out, build="b")
    told = str(caught.value)
    assert f"{clips} of {clips} clips are missing under {tmp_path / 'clips'}" in told
    assert "--audio-root" in told
    assert "--max-rejected" in told
    away.rename(tmp_path / "clips")
    counts = build(manifest, out, build="b")
    assert (counts["answered"], counts["rejected"]) == (clips, 0)


def test_a_retry_goes_on_when_the_folder_is_back(tmp_path: Path, build: Any, stand_in: StandIn):
    manifest, out = make(tmp_path, 12), tmp_path / "out"
    away = hide(tmp_path)
    with pytest.raises(ShardFailedError):
        build(manifest, out)
    away.rename(tmp_path / "clips")
    engine = EngineSettings(url=(stand_in.url,))
    state = retry_failed_shards(str(out), engine=engine, return_state=True)
    assert state.result()["answered"] == 12


def test_most_clips_missing_fail_the_shard_a_few_are_rejected(tmp_path: Path, build: Any):
    manifest, out = make(tmp_path, 20), tmp_path / "out"
    for number in range(11):
        (tmp_path / "clips" / f"{number}.wav").rename(tmp_path / f"{number}.away")
    with pytest.raises(ShardFailedError, match="11 of 20 clips are missing"):
        build(manifest, out, build="b")
    (tmp_path / "0.away").rename(tmp_path / "clips" / "0.wav")
    counts = build(manifest, out, build="b")
    assert (counts["answered"], counts["reasons"]) == (10, {"clip_missing": 10})


def test_a_wrong_root_fails_each_large_shard(tmp_path: Path, build: Any):
    manifest, out = make(tmp_path, 24), tmp_path / "out"
    layout = LayoutSettings(shard_rows=12)
    root = InputSettings(audio_root=str(tmp_path / "nowhere"))
    with pytest.raises(ShardFailedError, match="shard 0: 12 of 12 clips are missing"):
        build(manifest, out, layout=layout, input=root)
    assert build(manifest, out, layout=layout)["answered"] == 24


def test_one_lost_clip_in_a_small_last_shard_is_rejected(tmp_path: Path, build: Any):
    manifest, out = make(tmp_path, 4), tmp_path / "out"
    (tmp_path / "clips" / "3.wav").unlink()
    counts = build(manifest, out, layout=LayoutSettings(shard_rows=3))
    assert (counts["answered"], counts["reasons"]) == (3, {"clip_missing": 1})


def test_clips_gone_for_good_are_allowed_once_and_known_from_then_on(tmp_path: Path, build: Any):
    manifest, out = make(tmp_path, 24), tmp_path / "out"
    layout = LayoutSettings(shard_rows=12)
    build(manifest, out, layout=layout)
    for number in range(12):
        (tmp_path / "clips" / f"{number}.wav").unlink()
    with pytest.raises(ShardFailedError, match="shard 0: 12 of 12"):
        build(manifest, out, build="b", layout=layout)
    counts = build(manifest, out, build="b", layout=layout, max_rejected=1.0)
    assert counts["reasons"] == {"clip_missing": 12}
    counts = build(manifest, out, layout=layout)
    assert (counts["answered"], counts["reasons"]) == (12, {"clip_missing": 12})
    away = hide(tmp_path)
    with pytest.raises(ShardFailedError, match="shard 1: 12 of 12"):
        build(manifest, out, layout=layout)
    away.rename(tmp_path / "clips")
    make(tmp_path, 24)
    assert build(manifest, out, layout=layout)["answered"] == 24


def test_a_server_that_tells_only_when_asked_for_the_bytes(
    tmp_path: Path, web: WebServer, build: Any
):
    paths = [f"/{number}.wav" for number in range(20)]
    data = {path: clip_bytes(tmp_path, 300 + 9 * n) for n, path in enumerate(paths)}
    manifest = write_manifest(tmp_path / "m.jsonl", [record(web.url + path) for path in paths])
    for path in paths:
        web.put(path, data[path])
        web.places[path] = path
        web.statuses[path] = 302
    layout = LayoutSettings(batch_rows=4)
    with pytest.raises(ShardFailedError, match="of 20 clips are missing"):
        build(manifest, tmp_path / "out", build="b", layout=layout)
    web.places.clear()
    web.statuses.clear()
    counts = build(manifest, tmp_path / "out", build="b", layout=layout)
    assert (counts["answered"], counts["rejected"]) == (20, 0)
    assert len(Published(tmp_path / "out").answers()) == 20
