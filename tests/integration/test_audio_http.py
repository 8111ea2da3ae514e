"""Clips from a web server that behaves, and from one that does not."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from earwitness.access import AccessPolicy
from earwitness.audio.fetch import ClipFetcher, stat_clips, unavailable
from earwitness.audio.source import Pace
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.records import Reason, Rejection

TRUSTING = AccessPolicy(trusted=True)
BYTES = bytes(range(256)) * 5_000
STATUSES = {"/gone": 410, "/denied": 403, "/login": 401, "/teapot": 418, "/down": 500}
HEADERS = {
    "/etag": {"ETag": 'W/"abc"'},
    "/dated": {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"},
    "/plain": {},
}
COUNT = itertools.count()


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "2")


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
    async with ClipFetcher(access=TRUSTING) as fetcher:
        return await fetcher.fetch(uri, folder, max_bytes)


@pytest.mark.parametrize("name", ["etag", "dated", "moved"])
async def test_stat_gives_the_stamp_that_fetch_gave(server, tmp_path, name):
    uri = f"{server}/{name}"
    fetched = await fetch(uri, tmp_path)
    assert fetched.sha256 == hashlib.sha256(BYTES).hexdigest()
    assert fetched.stamp is not None
    assert await stat_clips([uri], access=TRUSTING) == {uri: fetched.stamp}


@pytest.mark.parametrize("name", ["plain", "stream", "no-head"])
async def test_without_etag_or_date_a_clip_is_always_fetched(server, tmp_path, name):
    uri = f"{server}/{name}"
    fetched = await fetch(uri, tmp_path)
    assert fetched.path.read_bytes() == BYTES
    assert fetched.stamp is None
    assert await stat_clips([uri], access=TRUSTING) == {uri: None}


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
    missing, *rest = (await stat_clips(uris, access=TRUSTING)).values()
    assert isinstance(missing, Rejection)
    assert rest == [None, None]


Answer = Callable[[asyncio.StreamWriter, str], Awaitable[None]]
HASTY = Pace(answer_s=0.5, silence_s=1, window_s=0.3, bytes_per_s=1000)


@asynccontextmanager
async def raw_server(answer: Answer) -> AsyncIterator[str]:
    """A server that answers each request, given as text, in whatever way."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                await answer(writer, request.decode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.wav"
    finally:
        server.close()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def trickle_body(writer: asyncio.StreamWriter, _: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    await drip(writer, BYTES[:500])


async def trickle_headers(writer: asyncio.StreamWriter, _: str) -> None:
    await drip(writer, b"HTTP/1.1 200 OK\r\n" + b"X-More: of this\r\n" * 50)


@pytest.mark.parametrize("answer", [trickle_body, trickle_headers])
async def test_a_server_that_trickles_is_given_up(answer, tmp_path, monkeypatch):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "0.8")
    began = time.monotonic()
    async with raw_server(answer) as uri, ClipFetcher(access=TRUSTING, pace=HASTY) as fetcher:
        with pytest.raises(StorageUnavailableError) as caught:
            await fetcher.fetch(uri, tmp_path, 10**8)
    assert unavailable(caught.value).reason is Reason.FETCH_TIMEOUT
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


async def test_a_slow_server_that_is_fast_enough_is_heard_to_the_end(tmp_path):
    async def answer(writer: asyncio.StreamWriter, _: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n")
        for start in range(0, 20_000, 1000):
            writer.write(BYTES[start : start + 1000])
            await asyncio.sleep(0.03)

    async with raw_server(answer) as uri, ClipFetcher(access=TRUSTING, pace=HASTY) as fetcher:
        assert (await fetcher.fetch(uri, tmp_path, 10**8)).size_bytes == 20_000


async def test_more_bytes_than_announced_are_taken_for_no_other_answer(tmp_path):
    async def answer(writer: asyncio.StreamWriter, request: str) -> None:
        body = b"GOOD" if "/second" in request else b"fine"
        rest = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + body + rest)

    async with raw_server(answer) as uri, ClipFetcher(access=TRUSTING) as fetcher:
        first = await fetcher.fetch(uri, tmp_path, 10**8)
        second = await fetcher.fetch(uri.replace("a.wav", "second"), tmp_path, 10**8)
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"fine", b"GOOD")


@dataclass
class Breaking:
    """A server that breaks off every body after a piece, and serves the rest if asked for it."""

    piece: int = 300_000
    etags: list[str] = field(default_factory=lambda: ['"v1"'])
    accepts: bytes = b"bytes"
    shift: int = 0
    careless: bool = False
    rests_asked: int = 0
    more: int = 0
    starts: list[int] = field(default_factory=list)

    async def __call__(self, writer: asyncio.StreamWriter, request: str) -> None:
        headers = dict(line.split(": ", 1) for line in request.split("\r\n")[1:] if line)
        etag = self.etags[min(len(self.starts), len(self.etags) - 1)]
        self.rests_asked += "Range" in headers
        ranged = "Range" in headers and (self.careless or headers["If-Range"] == etag)
        start = int(headers["Range"][6:-1]) if ranged else 0
        self.starts.append(start)
        status = b"206 Partial" if ranged else b"200 OK"
        begin, length = start + self.shift * ranged, len(BYTES)
        rest = BYTES[start:] + bytes(self.more * ranged)
        lines = [
            b"HTTP/1.1 " + status,
            b"Content-Length: %d" % len(rest),
            b"Accept-Ranges: " + self.accepts,
            b"ETag: " + etag.encode(),
        ]
        if ranged:
            lines.append(b"Content-Range: bytes %d-%d/%d" % (begin, length - 1, length))
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + rest[: self.piece])
        await writer.drain()
        if len(rest) > self.piece:
            # what is still unread when a connection ends is lost to aiohttp's readers
            await asyncio.sleep(0.15)
            writer.close()


async def test_a_body_that_breaks_off_goes_on_where_it_stopped(tmp_path):
    breaking = Breaking()
    async with raw_server(breaking) as uri:
        fetched = await fetch(uri, tmp_path)
    assert fetched.sha256 == hashlib.sha256(BYTES).hexdigest()
    assert breaking.starts[0] == 0
    assert all(breaking.starts[1:]), "within one attempt"
    assert len(breaking.starts) >= len(BYTES) / breaking.piece
    assert str(fetched.stamp) == f"{len(BYTES)}:v1"


@pytest.mark.parametrize(
    ("breaking", "tried"),
    [
        (Breaking(etags=['W/"v1"']), False),
        (Breaking(accepts=b"none"), False),
        (Breaking(piece=60_000), False),
        (Breaking(etags=[f'"{version}"' for version in range(100)]), True),
        (Breaking(etags=[f'"{version}"' for version in range(100)], careless=True), True),
        (Breaking(shift=1), True),
    ],
    ids=["weak", "no-ranges", "too-little", "replaced", "careless", "elsewhere"],
)
async def test_a_body_goes_on_only_where_that_is_surely_the_same_one(
    breaking, tried, tmp_path, monkeypatch
):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "0.8")
    async with raw_server(breaking) as uri:
        with pytest.raises(StorageUnavailableError):
            await fetch(uri, tmp_path)
    assert bool(breaking.rests_asked) is tried
    assert breaking.starts.count(0) >= 2, "another attempt begins anew"
    assert list(tmp_path.iterdir()) == []


async def test_a_clip_replaced_between_two_pieces_is_read_anew(tmp_path):
    breaking = Breaking(etags=['"v1"', '"v2"'])
    async with raw_server(breaking) as uri:
        fetched = await fetch(uri, tmp_path)
    assert fetched.sha256 == hashlib.sha256(BYTES).hexdigest()
    assert breaking.starts[:3] == [0, 0, 0]
    assert str(fetched.stamp) == f"{len(BYTES)}:v2"


async def test_a_rest_longer_than_the_whole_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("EARWITNESS_STORAGE_PATIENCE_S", "0.8")
    async with raw_server(Breaking(piece=1_000_000, more=10)) as uri:
        with pytest.raises(StorageUnavailableError):
            await fetch(uri, tmp_path)


@pytest.mark.parametrize("uri", ["http://[::1/a.wav", "http:///a", "http://h:99999/a"])
async def test_what_is_no_address_is_rejected_and_not_an_error(uri, tmp_path):
    assert (await stat_clips([uri], access=TRUSTING)) == {uri: None}
    with pytest.raises(BadRecordError) as caught:
        await fetch(uri, tmp_path)
    assert caught.value.rejection.reason is Reason.BAD_URI
