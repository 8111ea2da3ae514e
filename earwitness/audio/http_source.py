"""Clips on web servers."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from earwitness.audio.sink import CHUNK_BYTES
from earwitness.audio.source import Found, bad_uri, denied, missing, raise_ours, retried, shown
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.records import Reason, Rejection, Stage, Stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from earwitness.audio.sink import ClipSink

MAX_REDIRECTS = 5
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
    """

    def __init__(self, connections: int) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=60),
            # the bytes as stored: a compressed copy would have another hash and length
            headers={"Accept-Encoding": "identity", "User-Agent": "earwitness"},
            auto_decompress=False,
            trust_env=True,
        )
        self._slots = asyncio.Semaphore(connections)

    async def fetch(self, uri: str, sink: ClipSink) -> Stamp | None:
        """See `ClipSource.fetch`."""
        try:
            async with self._session.get(uri, max_redirects=MAX_REDIRECTS) as response:
                _check_status(response.status, uri)
                sink.expect(response.content_length)
                async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                    await asyncio.to_thread(sink.write, chunk)
                return _stamp(sink.size_bytes, response.headers)
        except aiohttp.TooManyRedirects:
            detail = f"{shown(uri)} redirects more than {MAX_REDIRECTS} times"
            rejection = Rejection(Stage.FETCH, Reason.CLIP_MISSING, detail)
            raise BadRecordError(rejection) from None
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
        await self._session.close()

    async def _stat(self, uri: str) -> Found:
        async with self._slots:
            try:
                return await retried(lambda: self._head(uri), attempts=2, timeout_s=60)
            except (StorageUnavailableError, aiohttp.ClientError, UnicodeError):
                # many a server fails at HEAD alone: let the download tell
                return None

    async def _head(self, uri: str) -> Found:
        try:
            async with self._session.head(
                uri, allow_redirects=True, max_redirects=MAX_REDIRECTS
            ) as response:
                if response.status in _GONE:
                    return missing(uri, Stage.RESOLVE)
                if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise StorageUnavailableError(f"{shown(uri)}: HTTP {response.status}")
                if response.status != HTTPStatus.OK or response.content_length is None:
                    return None
                return _stamp(response.content_length, response.headers)
        except (aiohttp.InvalidURL, aiohttp.TooManyRedirects):
            return None
        except (aiohttp.ClientError, OSError) as error:
            raise_ours(error, uri, Stage.RESOLVE)


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
