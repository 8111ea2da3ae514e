"""Clips on a real S3 endpoint (rclone): stamps, listings, refusals."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from earwitness.audio.fetch import ClipFetcher, ClipSources, stat_clips
from earwitness.errors import BadRecordError, CredentialsError, StorageUnavailableError
from earwitness.records import Reason, Rejection, Stamp

RCLONE = shutil.which("rclone") or str(Path(sys.executable).parent / "rclone")
pytestmark = pytest.mark.skipif(not Path(RCLONE).exists(), reason="rclone is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    for number in range(40):
        path = folder / bucket / "dense" / f"clip-{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"clip {number}".encode() * 100)
    (folder / bucket / "Räume und +Zeichen").mkdir()
    (folder / bucket / "Räume und +Zeichen" / "ä b%20c.wav").write_bytes(os.urandom(2_500_000))
    (folder / bucket / "empty.wav").touch()
    port = free_port()
    command = [RCLONE, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "key,secret"]
    log = (folder / "log").open("wb")
    server = subprocess.Popen([*command, str(folder)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", bucket
    finally:
        server.terminate()
        server.wait(10)
        log.close()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    url, name = endpoint
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://{name}"


async def fetch(uri: str, folder: Path, max_bytes: int = 10**8):
    async with ClipFetcher() as fetcher:
        return await fetcher.fetch(uri, folder, max_bytes)


@pytest.mark.parametrize("key", ["dense/clip-007.wav", "Räume und +Zeichen/ä b%20c.wav"])
async def test_stat_gives_the_stamp_that_fetch_gave(bucket, tmp_path, key):
    uri = f"{bucket}/{key}"
    fetched = await fetch(uri, tmp_path)
    assert fetched.sha256 == hashlib.sha256(fetched.path.read_bytes()).hexdigest()
    assert isinstance(fetched.stamp, Stamp)
    assert await stat_clips([uri]) == {uri: fetched.stamp}


async def test_a_listing_gives_the_same_stamps_as_single_calls(bucket):
    uris = [f"{bucket}/dense/clip-{number:03}.wav" for number in range(3, 33)]
    listed = await stat_clips(uris)
    async with ClipSources() as sources:
        single = {uri: (await stat_clips([uri], sources=sources))[uri] for uri in uris}
    assert listed == single
    assert all(isinstance(stamp, Stamp) for stamp in listed.values())


async def test_clips_missing_from_a_listing_are_told(bucket):
    uris = [f"{bucket}/dense/clip-{number:03}.wav" for number in range(30, 50)]
    found = await stat_clips(uris)
    assert [isinstance(found[uri], Stamp) for uri in uris] == [True] * 10 + [False] * 10
    assert {found[uri].reason for uri in uris[10:]} == {Reason.CLIP_MISSING}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("none.wav", Reason.CLIP_MISSING),
        ("empty.wav", Reason.CLIP_EMPTY),
        ("", Reason.BAD_URI),
    ],
)
async def test_what_is_no_clip_is_rejected(bucket, tmp_path, key, reason):
    with pytest.raises(BadRecordError) as caught:
        await fetch(f"{bucket}/{key}", tmp_path)
    assert caught.value.rejection.reason is reason


async def test_a_missing_bucket_is_a_missing_clip(bucket, tmp_path):
    with pytest.raises(BadRecordError) as caught:
        await fetch(f"{bucket}-none/a.wav", tmp_path)
    assert caught.value.rejection.reason is Reason.CLIP_MISSING
    assert isinstance((await stat_clips([f"{bucket}-none/a.wav"])).popitem()[1], Rejection)


async def test_a_clip_over_the_limit_is_rejected_unread(bucket, tmp_path):
    with pytest.raises(BadRecordError) as caught:
        await fetch(f"{bucket}/dense/clip-001.wav", tmp_path, 10)
    assert caught.value.rejection.reason is Reason.CLIP_TOO_LARGE


async def test_wrong_credentials_are_told_as_such(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    with pytest.raises(CredentialsError):
        await fetch(f"{bucket}/dense/clip-001.wav", tmp_path)


async def test_an_endpoint_that_is_down_is_unavailable(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageUnavailableError):
        await fetch(f"{bucket}/dense/clip-001.wav", tmp_path)
    with pytest.raises(StorageUnavailableError):
        await stat_clips([f"{bucket}/dense/clip-001.wav"])
