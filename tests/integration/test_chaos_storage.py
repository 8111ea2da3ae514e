"""Object storage that has a bad day, through a proxy before a real S3 endpoint: the short form."""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from workbench import record, write_manifest

from earwitness import storage_calls
from earwitness.access import AccessPolicy
from earwitness.audio.fetch import ClipFetcher, ClipSources, stat_clips
from earwitness.audio.sink import ClipSink
from earwitness.builds.batch import Decided, write_resolved, write_segment
from earwitness.builds.gc import look_at
from earwitness.builds.layout import Build
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.builds.publish import publish_build
from earwitness.errors import (
    BadRecordError,
    CredentialsError,
    FatalError,
    StorageUnavailableError,
    TransientError,
)
from earwitness.identity import ModelIdentity
from earwitness.manifest.read import open_manifest
from earwitness.records import Answer, HeardClip, Outcome, Reason, Stamp
from earwitness.settings import BuildSettings, LayoutSettings
from earwitness.storage import Store
from tests.chaos.builds import Layout
from tests.chaos.fault_proxy import FaultProxy
from tests.chaos.storage import (
    a_checkpoint_fails,
    credentials_end,
    everything_fails,
    one_fifth_fails,
    weather,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from workbench import S3Server

    from tests.chaos.storage import Weather

SMALL = Layout(rows=134, shard_rows=67, batch_rows=20, window=2, clips=30)
BUCKET = "s3://stormy"
CALLS = 25


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    # by the endpoint itself: it does not look into its folder for new buckets all the time
    endpoint = s3fs.S3FileSystem(skip_instance_cache=True)
    if not endpoint.exists("stormy"):
        endpoint.mkdir("stormy")
    with FaultProxy(s3.url, "short", stall_s=0.7) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        waits = {"config_kwargs": {"read_timeout": 0.5, "connect_timeout": 2}}
        monkeypatch.setitem(fsspec.config.conf, "s3", waits)
        storage_calls._patience.cache_clear()
        yield found
    storage_calls._patience.cache_clear()


@pytest.fixture
def store(proxy: FaultProxy, request: pytest.FixtureRequest) -> Store:  # noqa: ARG001 - behind it
    return Store(f"{BUCKET}/{request.node.name.partition('[')[0]}")


async def fetch(uri: str, folder: Path):
    async with ClipFetcher() as fetcher:
        return await fetcher.fetch(uri, folder, 10**8)


def test_every_kind_of_call_survives_a_fifth_of_them_failing(store: Store, proxy: FaultProxy):
    proxy.rate = 0.2
    for number in range(CALLS):
        data = b"%d" % number * 5_000
        store.write_bytes(f"o/{number}", data)
        assert store.read_bytes(f"o/{number}") == data
        assert store.exists(f"o/{number}")
        assert not store.exists(f"none/{number}")
    assert len(store.sizes("o")) == CALLS
    assert store.folders() == ["o"]
    store.delete_many(list(store.sizes("o")))
    assert store.sizes("o") == {}
    assert sum(proxy.done.values()) > CALLS / 5


@pytest.mark.parametrize("fault", ["cut body", "reset after", "stall", "InternalError"])
def test_a_parquet_file_is_read_in_pieces_whatever_breaks_off(
    store: Store, proxy: FaultProxy, tmp_path: Path, fault: str
):
    pq.write_table(pa.table({"n": list(range(50_000))}), tmp_path / "t", row_group_size=10_000)
    store.upload(tmp_path / "t", "t.parquet")
    proxy.force("HEAD .*t.parquet", "wrong ETag")
    for _ in range(2):
        proxy.force("GET .*t.parquet", fault)
    with store.open("t.parquet") as file:
        assert pq.ParquetFile(file).read()["n"].to_pylist() == list(range(50_000))
    assert proxy.done[fault] == 2


def test_a_file_that_is_replaced_between_its_pieces_is_never_mixed(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    half = 3 * 2**20
    store.write_bytes("o", b"a" * 2 * half)
    monkeypatch.setattr(storage_calls._filesystem("s3"), "default_block_size", 2**20)
    with store.open("o") as file:
        assert file.read(half) == b"a" * half
        store.write_bytes("o", b"b" * 2 * half)
        proxy.force("GET .*/o", "reset before")
        with pytest.raises(TransientError, match="changed"):
            file.read(half)


@pytest.mark.parametrize("size", [5_000, 101 * 2**20], ids=["in one", "in parts"])
def test_a_write_whose_answer_was_lost_is_done(
    proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
):
    monkeypatch.setitem(fsspec.config.conf, "s3", {})
    storage_calls._filesystem.cache_clear()
    store = Store(f"{BUCKET}/answers-{size}")
    with (tmp_path / "o").open("wb") as file:
        file.truncate(size)
    if size < 2**20:
        proxy.force("PUT .*/o$", "reset after")
    else:  # once parts come, the next POST ends the upload
        proxy.at("PUT .*/o$", lambda: proxy.force("POST .*/o$", "reset after"))
    store.upload(tmp_path / "o", "o")
    assert proxy.done["reset after"] == 1
    assert store.sizes() == {"o": size}


def test_no_upload_waits_to_be_told_to_begin(store: Store, proxy: FaultProxy):
    store.write_bytes("o", b"data")
    assert proxy.count("PUT") == 1
    assert proxy.expecting == 0


def test_uploads_that_a_kill_left_open_are_swept(store: Store):
    fs = storage_calls._filesystem("s3")
    bucket, _, folder = store.root.removeprefix("s3://").partition("/")
    begun = {"Bucket": bucket, "Key": f"{folder}/data/large"}
    part = {**begun, "UploadId": fs.call_s3("create_multipart_upload", **begun)["UploadId"]}
    fs.call_s3("upload_part", **part, PartNumber=1, Body=b"half a fi")
    store.sweep("jsonl")
    assert len(fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=folder)["Uploads"]) == 1
    store.sweep("data")
    left = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=folder)
    assert not left.get("Uploads")


def test_an_outage_is_noticed_once_and_its_end_at_once(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "2")
    storage_calls._patience.cache_clear()
    store.write_bytes("o", b"data")
    proxy.force("GET .*", "stall")
    proxy.rate = 1.0
    began = time.monotonic()
    with pytest.raises(StorageUnavailableError, match=r"storage of s3://.* does not answer"):
        store.read_bytes("o")
    assert time.monotonic() - began < 15
    with pytest.raises(StorageUnavailableError):
        store.read_bytes("o")
    assert storage_calls._patience("s3").spent  # so that further calls are made once
    proxy.quiet()
    assert store.read_bytes("o") == b"data"
    assert not storage_calls._patience("s3").spent


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_refused_credentials_are_told_as_such_by_every_call(
    store: Store, proxy: FaultProxy, tmp_path: Path, code: str
):
    store.write_bytes("o", b"data")
    proxy.refused = {".*": code}
    calls = (
        lambda: store.exists("o"),  # HEAD: its answer cannot say why
        lambda: store.read_bytes("o"),
        lambda: store.open("o"),
        lambda: store.write_bytes("o", b""),
        store.sizes,
        lambda: asyncio.run(fetch(store.uri("o"), tmp_path)),
        lambda: open_manifest(store.uri("o"), max_line_bytes=1024),
    )
    for call in calls:
        with pytest.raises(CredentialsError, match=code):
            call()


async def test_one_clip_whose_stamp_cannot_be_had_leaves_the_others_known(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "2")
    for name in ("a", "b", "c"):
        await asyncio.to_thread(store.write_bytes, name, b"data")
    for _ in range(50):
        proxy.force("HEAD .*/b$", "InternalError")
    found = await stat_clips([store.uri(name) for name in ("a", "b", "c")])
    assert found[store.uri("b")] is None  # only fetching it can tell
    assert isinstance(found[store.uri("a")], Stamp)
    assert isinstance(found[store.uri("c")], Stamp)


async def test_a_folder_that_cannot_be_listed_is_asked_for_clip_by_clip(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "2")
    uris = [store.uri(f"{number}.wav") for number in range(20)] + [store.uri("other/a.wav")]
    for uri in uris:
        await asyncio.to_thread(store.write_bytes, uri.removeprefix(f"{store.root}/"), b"data")
    for _ in range(50):
        proxy.force("GET /stormy/?$", "InternalError")
    found = await stat_clips(uris)
    assert all(isinstance(stamp, Stamp) for stamp in found.values())


async def test_object_storage_that_is_down_is_no_clips_fault(
    store: Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "1")
    proxy.rate = 1.0
    with pytest.raises(StorageUnavailableError):
        await stat_clips([store.uri(name) for name in ("a", "b")])


async def test_one_clip_that_is_denied_is_denied_alone(
    store: Store, proxy: FaultProxy, tmp_path: Path
):
    store.write_bytes("a", b"data")
    store.write_bytes("b", b"more")
    proxy.refused = {r"\w+ .*/a": "AccessDenied"}
    with pytest.raises(BadRecordError) as caught:
        await fetch(store.uri("a"), tmp_path)
    assert caught.value.rejection.reason is Reason.ACCESS_DENIED
    assert (await fetch(store.uri("b"), tmp_path)).size_bytes == 4
    with pytest.raises(FatalError, match=r"no permission for s3://.*/a"):
        await asyncio.to_thread(store.read_bytes, "a")


def test_what_no_listing_shows_yet_is_there_all_the_same(
    store: Store, proxy: FaultProxy, tmp_path: Path
):
    proxy.late_s = 60.0
    lines = [record("x.wav", id=row) for row in range(4)]
    manifest = write_manifest(tmp_path / "m.jsonl", lines)
    settings = BuildSettings(
        manifest=str(manifest), output=store.root, layout=LayoutSettings(shard_rows=2)
    )
    build = Build(store.root, "b-20261122T000000Z-aaaaaa")
    model = ModelIdentity("declared", "stand-in", "")
    plan_build(build, resolve_settings(settings), model, datetime.now(UTC))
    for shard in range(2):
        answers = [answered(2 * shard), answered(2 * shard + 1)]
        path = f"work/shard-{shard:05d}/batch-00000-0.parquet"
        write_resolved(build, shard, [])
        write_segment(build, path, answers, [])
        assert build.store.sizes("work") == {}
        assert persist_shard(build, shard, segments=[path]).counts.answered == 2
    assert build.done_shards() == set()
    assert build.missing_shards() == []
    assert build.whole()
    assert publish_build(build)["counts"]["answered"] == 4
    (seen,) = look_at(store.root, [build.id])
    assert (seen.planned, seen.published) == (True, True)
    assert seen.quiet_s() < 0, "gc takes it for old"


def answered(row: int) -> Decided:
    answer = Answer(f"answer {row}", "stop", 10, 3)
    heard = (HeardClip("a" * 64, 1.5, 1.5),)
    return Decided(row, Outcome(f"{row:064x}", answer, None, heard, 256), reused=False)


async def test_clips_come_whole_or_again(store: Store, proxy: FaultProxy, tmp_path: Path):
    clips = {store.uri(f"{number}.wav"): b"%d" % number * 3_000 for number in range(40)}
    for uri, data in clips.items():
        await asyncio.to_thread(store.write_bytes, uri.rpartition("/")[2], data)
    genuine = await stat_clips(clips)
    proxy.rate = 0.2
    async with ClipFetcher() as fetcher:
        fetched = await asyncio.gather(*(fetcher.fetch(uri, tmp_path, 10**6) for uri in clips))
        for clip in fetched:
            assert clip.sha256 == hashlib.sha256(clips[clip.uri]).hexdigest()
    proxy.quiet()
    # a wrong ETag costs another fetch some day; a right one comes with the right bytes
    assert sum(clip.stamp == genuine[clip.uri] for clip in fetched) > len(clips) * 0.7
    assert proxy.done["cut body"] > 0


@pytest.mark.parametrize("fault", ["", "cut body", "reset after"])
async def test_a_clip_on_s3_that_is_replaced_while_it_is_read_is_of_one_piece(
    s3: S3Server, store: Store, proxy: FaultProxy, tmp_path: Path, fault: str
):
    old, new = b"old" * 100_000, b"new" * 100_000
    uri = store.uri("clip.wav")
    await asyncio.to_thread(store.write_bytes, "clip.wav", old)
    known = (await stat_clips([uri]))[uri]
    if fault:
        proxy.force("GET .*clip.wav", fault)
    # the endpoint's own file, before the last attempt's GET is passed on
    path = proxy_folder(s3, store) / "clip.wav"
    for _ in range(2 if fault else 1):
        proxy.at("GET .*clip.wav", lambda: path.write_bytes(new))
    clip = await fetch(uri, tmp_path)
    assert clip.sha256 == hashlib.sha256(new).hexdigest()
    assert clip.stamp != known
    assert clip.stamp == (await stat_clips([uri]))[uri]


def proxy_folder(s3: S3Server, store: Store) -> Path:
    return s3.folder / store.root.removeprefix("s3://")


class Meddling(ClipSink):
    """A sink during whose first write something happens to the file that is read."""

    def __init__(self, folder: Path, happens) -> None:
        super().__init__(folder, 10**8)
        self._happens = happens

    def write(self, chunk: bytes) -> None:
        super().write(chunk)
        happens, self._happens = self._happens, lambda: None
        happens()


@pytest.mark.parametrize("how", ["rewritten", "cut", "renamed over", "grown"])
async def test_a_local_clip_that_changes_while_it_is_read_is_refused_or_old_throughout(
    tmp_path: Path, how: str
):
    old, new = b"old" * 10**6, b"new" * 10**6
    path, other = tmp_path / "clip.wav", tmp_path / "other.wav"
    path.write_bytes(old)
    other.write_bytes(new)

    def happens() -> None:
        if how == "renamed over":
            other.replace(path)
        elif how == "cut":
            with path.open("r+b") as file:
                file.truncate(2 * 2**20)
        elif how == "grown":
            with path.open("ab") as file:
                file.write(b"more")
        else:
            path.write_bytes(new)

    sink = Meddling(tmp_path, happens)
    async with ClipSources(access=AccessPolicy(trusted=True)) as sources:
        if how == "renamed over":
            await sources.of(str(path)).fetch(str(path), sink)
            assert sink.finish()[0] == hashlib.sha256(old).hexdigest()
            return
        with pytest.raises(StorageUnavailableError, match="changed"):
            await sources.of(str(path)).fetch(str(path), sink)
    sink.discard()


@pytest.fixture(scope="module")
def sky(tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Iterator[Weather]:
    with weather(tmp_path_factory.mktemp("weather"), SMALL, 0, prefect=prefect_server) as found:
        yield found


def test_a_build_of_whose_calls_a_fifth_fails_and_whose_listings_are_late_is_the_same(
    sky: Weather,
):
    sky.calm()
    one_fifth_fails(sky, 1, late_s=20.0)


def test_a_batch_whose_checkpoint_fails_is_tried_again_and_its_answers_stay_new(sky: Weather):
    sky.calm()
    a_checkpoint_fails(sky, 0)


def test_an_outage_fails_the_build_in_one_line_and_the_same_command_completes(sky: Weather):
    sky.calm()
    everything_fails(sky, 3, 3.0)


def test_credentials_that_end_fail_the_build_and_the_same_command_completes(sky: Weather):
    sky.calm()
    credentials_end(sky, 4)
