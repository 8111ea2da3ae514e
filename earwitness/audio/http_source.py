"""Clips on web servers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from earwitness.audio.sink import CHUNK_BYTES
from earwitness.audio.source import (
    Found,
    Pace,
    bad_uri,
    denied,
    missing,
    raise_ours,
    retried,
    shown,
)
from earwitness.audio.web import NotFollowedError, WebClient
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.patience import Patience
from earwitness.records import Reason, Rejection, Stage, Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from earwitness.access import AccessPolicy
    from earwitness.audio.sink import ClipSink

_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_REFUSED = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.UNAVAILABLE_FOR_LEGAL_REASONS,
}
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}


class HttpSource:
    """Clips over http and https; lives in the event loop it is created in.

    Args:
        connections: How many at once.
        access: Where clips may come from.
        pace: How slow a server may be.
    """

    def __init__(self, connections: int, access: AccessPolicy, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._web = WebClient(connections, access, self._pace)
        self._slots = asyncio.Semaphore(connections)

    async def fetch(self, uri: str, sink: ClipSink) -> Stamp | None:
        """See `ClipSource.fetch`."""
        try:
            return await self._read(uri, sink)
        except NotFollowedError as error:
            raise BadRecordError(_not_followed(error, uri, Stage.FETCH)) from None
        except (aiohttp.InvalidURL, UnicodeError):
            raise BadRecordError(bad_uri(uri)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise_ours(error, uri, Stage.FETCH)

    async def stat(self, uris: Sequence[str]) -> dict[str, Found]:
        """See `ClipSource.stat`."""
        found = await asyncio.gather(*(self._stat(uri) for uri in uris))
        return dict(zip(uris, found, strict=True))

    async def close(self) -> None:
        """See `ClipSource.close`."""
        await self._web.close()

    async def _read(self, uri: str, sink: ClipSink) -> Stamp | None:
        """Read a clip; a body that breaks off goes on where it stopped, where that is safe."""
        async with self._web.ask("GET", uri) as response:
            _check_status(response.status, uri)
            sink.expect(response.content_length)
            whole = _Whole.of(response)
            stamp_headers = response.headers
            done = await self._take(response, sink, whole)
        while not done:
            headers = {"Range": f"bytes={sink.size_bytes}-", "If-Range": f'"{whole.version}"'}
            async with self._web.ask("GET", uri, headers) as response:
                if not whole.goes_on(response, sink.size_bytes):
                    raise StorageUnavailableError(f"{shown(uri)} was cut off while it was read")
                done = await self._take(response, sink, whole)
        if whole.size_bytes not in {None, sink.size_bytes}:
            raise StorageUnavailableError(
                f"{shown(uri)} has a different length than the server announced"
            )
        return _stamp(sink.size_bytes, stamp_headers)

    async def _take(self, response: aiohttp.ClientResponse, sink: ClipSink, whole: _Whole) -> bool:
        """Take a body in; False when it broke off and is worth going on with."""
        before = sink.size_bytes
        try:
            await self._pump(response, sink)
        except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError):
            far_enough = sink.size_bytes - before >= self._pace.resume_bytes
            if not (whole.resumable and far_enough):
                raise
            return False
        return True

    async def _pump(self, response: aiohttp.ClientResponse, sink: ClipSink) -> None:
        loop = asyncio.get_running_loop()
        waited_s, got = 0.0, 0
        while True:
            asked_s = loop.time()
            chunk = await response.content.read(CHUNK_BYTES)
            # only the server's time counts, not that of our disk
            waited_s += loop.time() - asked_s
            if not chunk:
                return
            got += len(chunk)
            await asyncio.to_thread(sink.write, chunk)
            if waited_s >= self._pace.window_s:
                if got < self._pace.bytes_per_s * waited_s:
                    raise TimeoutError("the download is too slow")
                waited_s, got = 0.0, 0

    async def _stat(self, uri: str) -> Found:
        async with self._slots:
            try:
                return await retried(lambda: self._head(uri), Patience(), attempts=2, timeout_s=60)
            except (StorageUnavailableError, aiohttp.ClientError, UnicodeError):
                # many a server fails at HEAD alone: let the download tell
                return None

    async def _head(self, uri: str) -> Found:
        try:
            async with self._web.ask("HEAD", uri) as response:
                if response.status in _GONE:
                    return missing(uri, Stage.RESOLVE)
                if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise StorageUnavailableError(f"{shown(uri)}: HTTP {response.status}")
                if response.status != HTTPStatus.OK or response.content_length is None:
                    return None
                return _stamp(response.content_length, response.headers)
        except NotFollowedError as error:
            if error.reason is not Reason.ADDRESS_REFUSED:
                return None
            return _not_followed(error, uri, Stage.RESOLVE)
        except aiohttp.InvalidURL:
            return None
        except (aiohttp.ClientError, OSError) as error:
            raise_ours(error, uri, Stage.RESOLVE)


@dataclass(frozen=True, slots=True)
class _Whole:
    """What the first answer says of the whole body.

    Attributes:
        size_bytes: Its length, as announced.
        version: Its ETag, if it is one that equal bytes alone share.
        resumable: A rest of it can be asked for.
    """

    size_bytes: int | None
    version: str
    resumable: bool

    @classmethod
    def of(cls, response: aiohttp.ClientResponse) -> Self:
        etag = response.headers.get("ETag", "")
        version = etag[1:-1] if etag[:1] == etag[-1:] == '"' else ""
        ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        size = response.content_length
        return cls(size, version, bool(version) and ranges and size is not None)

    def goes_on(self, response: aiohttp.ClientResponse, start: int) -> bool:
        """Whether an answer is the rest, from `start` on, of the very same bytes."""
        size = self.size_bytes or 0
        return (
            response.status == HTTPStatus.PARTIAL_CONTENT
            and response.headers.get("ETag", "") == f'"{self.version}"'
            and response.headers.get("Content-Range", "") == f"bytes {start}-{size - 1}/{size}"
        )


def _not_followed(error: NotFollowedError, uri: str, stage: Stage) -> Rejection:
    return Rejection(stage, error.reason, f"{shown(uri)}: {error.why}")


def _check_status(status: int, uri: str) -> None:
    if status == HTTPStatus.OK:
        return
    if status in _GONE:
        raise BadRecordError(missing(uri))
    if status in _REFUSED:
        raise BadRecordError(denied(uri))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PASSING:
        raise StorageUnavailableError(f"{shown(uri)}: HTTP {status}")
    detail = f"the server answers HTTP {status} for {shown(uri)}"
    raise BadRecordError(Rejection(Stage.FETCH, Reason.CLIP_MISSING, detail))


def _stamp(size_bytes: int, headers: Mapping[str, str]) -> Stamp | None:
    version = normal_etag(headers.get("ETag", "")) or headers.get("Last-Modified", "")
    return Stamp(size_bytes, version) if version else None


def normal_etag(etag: str) -> str:
    """An ETag without quotes and weakness mark, as every way of asking gives it."""
    return etag.removeprefix("W/").strip('"')
