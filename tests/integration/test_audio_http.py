"""Clips from a web server that behaves, and from one that does not."""

import hashlib
import itertools
from pathlib import Path

import pytest
from aiohttp import web

from earwitness.audio.fetch import ClipFetcher, unavailable
from earwitness.audio.stat import stat_clips
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.records import Reason, Rejection

BYTES = bytes(range(256)) * 5_000
STATUSES = {"/gone": 410, "/denied": 403, "/login": 401, "/teapot": 418, "/down": 500}
HEADERS = {
    "/etag": {"ETag": 'W/"abc"'},
    "/dated": {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
    "/plain": {},
}
COUNT = itertools.count()


async def respond(request: web.Request) -> web.StreamResponse:
    path = request.path
    if path in STATUSES:
        return web.Response(status=STATUSES[path])
    if path in HEADERS:
        return web.Response(body=BYTES, headers=HEADERS[path])
    if path == "/empty":
        return web.Response(body=b"")
    if path == "/moved":
        raise web.HTTPFound("/etag")
    if path == "/circle":
        raise web.HTTPFound(f"/circle?{next(COUNT)}")
    if path == "/no-head":
        return web.Response(status=405) if request.method == "HEAD" else web.Response(body=BYTES)
    if path == "/moody":
        return web.Response(status=503) if next(COUNT) % 3 else web.Response(body=BYTES)
    raise web.HTTPNotFound


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(BYTES)
    return response


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(BYTES))})
    await response.prepare(request)
    await response.write(BYTES[:1000])
    assert request.transport is not None
    request.transport.close()
    return response


@pytest.fixture
async def server():
    app = web.Application()
    app.router.add_route("*", "/stream", stream)
    app.router.add_route("*", "/broken", break_off)
    app.router.add_route("*", "/{name:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


async def fetch(uri: str, folder: Path, max_bytes: int = 10**8):
    async with ClipFetcher() as fetcher:
        return await fetcher.fetch(uri, folder, max_bytes)


@pytest.mark.parametrize("name", ["etag", "dated", "moved"])
async def test_stat_gives_the_stamp_that_fetch_gave(server, tmp_path, name):
    uri = f"{server}/{name}"
    fetched = await fetch(uri, tmp_path)
    assert fetched.sha256 == hashlib.sha256(BYTES).hexdigest()
    assert fetched.stamp is not None
    assert await stat_clips([uri]) == {uri: fetched.stamp}


@pytest.mark.parametrize("name", ["plain", "stream", "no-head"])
async def test_without_etag_or_date_a_clip_is_always_fetched(server, tmp_path, name):
    uri = f"{server}/{name}"
    fetched = await fetch(uri, tmp_path)
    assert fetched.path.read_bytes() == BYTES
    assert fetched.stamp is None
    assert await stat_clips([uri]) == {uri: None}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", Reason.CLIP_MISSING),
        ("gone", Reason.CLIP_MISSING),
        ("circle", Reason.CLIP_MISSING),
        ("teapot", Reason.CLIP_MISSING),
        ("denied", Reason.ACCESS_DENIED),
        ("login", Reason.ACCESS_DENIED),
        ("empty", Reason.CLIP_EMPTY),
    ],
)
async def test_what_the_server_refuses_is_rejected(server, tmp_path, name, reason):
    with pytest.raises(BadRecordError) as caught:
        await fetch(f"{server}/{name}", tmp_path)
    assert caught.value.rejection.reason is reason


@pytest.mark.parametrize("name", ["plain", "stream"])
async def test_a_clip_over_the_limit_is_rejected(server, tmp_path, name):
    with pytest.raises(BadRecordError) as caught:
        await fetch(f"{server}/{name}", tmp_path, 1000)
    assert caught.value.rejection.reason is Reason.CLIP_TOO_LARGE


async def test_a_server_that_fails_for_a_while_is_asked_again(server, tmp_path):
    assert (await fetch(f"{server}/moody", tmp_path)).size_bytes == len(BYTES)


@pytest.mark.parametrize("name", ["down", "broken"])
async def test_a_server_that_keeps_failing_is_unavailable(server, tmp_path, name):
    with pytest.raises(StorageUnavailableError) as caught:
        await fetch(f"{server}/{name}", tmp_path)
    assert unavailable(caught.value).reason is Reason.FETCH_FAILED
    assert list(tmp_path.iterdir()) == []


async def test_stat_tells_a_missing_clip_and_leaves_the_rest_to_the_download(server):
    uris = [f"{server}/{name}" for name in ("none", "denied", "down")]
    missing, *rest = (await stat_clips(uris)).values()
    assert isinstance(missing, Rejection)
    assert rest == [None, None]
