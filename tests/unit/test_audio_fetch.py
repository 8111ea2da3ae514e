"""Clips from local folders: hashes, stamps, refusals."""

import asyncio
import hashlib
import os
import time
from pathlib import Path

import pytest

from earwitness.access import SCHEMES, AccessPolicy
from earwitness.audio.fetch import ClipFetcher, stat_clips, unavailable
from earwitness.audio.source import retried, shown
from earwitness.errors import BadRecordError, DiskError, StorageUnavailableError
from earwitness.patience import Patience
from earwitness.records import Reason, Rejection, Stage

LIMIT = 10_000_000
# "memory" stands in for what only fsspec reads
TRUSTING = AccessPolicy(trusted=True, schemes=SCHEMES | {"memory"})


@pytest.fixture
def scratch(tmp_path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip 1.wav"
    path.write_bytes(os.urandom(3_000_000))
    old_s = time.time() - 3600
    os.utime(path, (old_s, old_s))
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def fetch(uri: str, folder: Path, max_bytes: int = LIMIT):
    async with ClipFetcher(access=TRUSTING) as fetcher:
        return await fetcher.fetch(uri, folder, max_bytes)


async def refusal(uri: str, folder: Path, max_bytes: int = LIMIT) -> Rejection:
    with pytest.raises(BadRecordError) as caught:
        await fetch(uri, folder, max_bytes)
    assert names(folder) == [], "nothing may stay behind"
    assert caught.value.rejection.stage is Stage.FETCH
    return caught.value.rejection


async def test_a_clip_is_named_by_its_bytes(clip, scratch):
    fetched = await fetch(str(clip), scratch)
    assert fetched.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
    assert fetched.path == scratch / fetched.sha256
    assert fetched.path.read_bytes() == clip.read_bytes()
    assert fetched.size_bytes == 3_000_000
    assert names(scratch) == [fetched.sha256]


async def test_a_file_uri_names_the_same_clip(clip, scratch):
    assert (await fetch(clip.as_uri(), scratch)).size_bytes == 3_000_000


async def test_stat_gives_the_stamp_that_fetch_gave(clip, scratch):
    fetched = await fetch(str(clip), scratch)
    assert fetched.stamp is not None
    assert await stat_clips([str(clip)], access=TRUSTING) == {str(clip): fetched.stamp}


async def test_changed_bytes_of_the_same_length_change_the_stamp(clip):
    before = await stat_clips([str(clip)], access=TRUSTING)
    clip.write_bytes(bytes(3_000_000))
    assert await stat_clips([str(clip)], access=TRUSTING) != before


async def test_a_file_modified_just_now_gives_no_stamp_to_trust(clip, scratch):
    clip.write_bytes(b"fresh")
    assert (await fetch(str(clip), scratch)).stamp is None


async def test_a_missing_clip_is_told_by_fetch_and_by_stat(tmp_path, scratch):
    uri = str(tmp_path / "none.wav")
    assert (await refusal(uri, scratch)).reason is Reason.CLIP_MISSING
    found = (await stat_clips([uri], access=TRUSTING))[uri]
    assert found == Rejection(Stage.RESOLVE, Reason.CLIP_MISSING, f"there is no clip at {uri}")


@pytest.mark.parametrize("name", ["folder", "pipe", "a" * 300, "clip 1.wav/x"])
async def test_what_is_no_file_is_a_missing_clip(tmp_path, clip, scratch, name):  # noqa: ARG001 - the last name is below the clip
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert (await refusal(str(tmp_path / name), scratch)).reason is Reason.CLIP_MISSING


async def test_a_name_no_file_can_have_is_a_bad_address(scratch):
    assert (await refusal("/clips/\0.wav", scratch)).reason is Reason.BAD_URI


async def test_an_empty_clip_is_rejected(tmp_path, scratch):
    (tmp_path / "empty").touch()
    assert (await refusal(str(tmp_path / "empty"), scratch)).reason is Reason.CLIP_EMPTY


async def test_a_clip_over_the_limit_is_rejected(clip, scratch):
    assert (await refusal(str(clip), scratch, 2_999_999)).reason is Reason.CLIP_TOO_LARGE
    assert (await fetch(str(clip), scratch, 3_000_000)).size_bytes == 3_000_000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_clip_that_may_not_be_read_is_denied(clip, scratch):
    clip.chmod(0)
    assert (await refusal(str(clip), scratch)).reason is Reason.ACCESS_DENIED


async def test_a_clip_is_not_missing_when_the_scratch_folder_is(clip, tmp_path):
    with pytest.raises(DiskError, match="cannot be written"):
        await fetch(str(clip), tmp_path / "gone")


async def test_a_clip_that_comes_in_many_pieces_is_whole(tmp_path, scratch):
    for size in (2**20 - 1, 2**20, 2**20 + 1, 2 * 2**20):
        data = os.urandom(size)
        (tmp_path / "clip").write_bytes(data)
        assert (await fetch(str(tmp_path / "clip"), scratch)).path.read_bytes() == data


async def test_other_file_systems_are_read_through_fsspec(scratch):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/clips/a.wav", b"abc")
    fetched = await fetch("memory://clips/a.wav", scratch)
    assert fetched.sha256 == hashlib.sha256(b"abc").hexdigest()
    missing = (await stat_clips(["memory://clips/b.wav"], access=TRUSTING))["memory://clips/b.wav"]
    assert isinstance(missing, Rejection)


async def test_a_call_that_fails_for_a_while_is_tried_again():
    failures = iter([True, True, False])

    async def call() -> str:
        if next(failures):
            raise StorageUnavailableError("503")
        return "there"

    assert await retried(call, Patience(), attempts=3, first_pause_s=0) == "there"


async def test_a_call_that_hangs_ends_as_a_time_out():
    with pytest.raises(StorageUnavailableError) as caught:
        await retried(lambda: asyncio.sleep(60), Patience(), attempts=1, timeout_s=0.01)
    assert unavailable(caught.value).reason is Reason.FETCH_TIMEOUT


def test_messages_show_no_signatures_and_no_passwords():
    uri = "https://me:secret@host/a.wav?X-Amz-Signature=secret"
    assert shown(uri) == "https://host/a.wav"
