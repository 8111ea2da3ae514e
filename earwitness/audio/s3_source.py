"""Clips on S3 and what speaks its protocol."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn, cast

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from fsspec.config import conf

from earwitness.audio.sink import CHUNK_BYTES
from earwitness.audio.source import Found, bad_uri, missing, raise_ours, retried
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.patience import Patience
from earwitness.records import Stage, Stamp
from earwitness.storage_errors import translate_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from earwitness.audio.sink import ClipSink

DENSE = 16
"""From this many wanted clips in one folder on, a listing is tried before single calls."""
WANTED_PER_PAGE = 8
"""A listing goes on while it costs at most one page for this many wanted clips."""

# a body cut short comes as aiohttp's own error
_ERRORS = (BotoCoreError, ClientError, aiohttp.ClientError, OSError)


class S3Source:
    """Clips on S3; lives in the event loop it is created in.

    Args:
        connections: How many at once.
    """

    def __init__(self, connections: int) -> None:
        # we try again, for a minute; layers of retries below ours would make many minutes of it
        config = {"max_pool_connections": connections, "retries": {"total_max_attempts": 1}}
        config.update(conf.get("s3", {}).get("config_kwargs", {}))
        self._fs = s3fs.S3FileSystem(
            asynchronous=True,
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs=config,
        )
        self._fs.retries = 1
        self._patience = Patience()
        self._slots = asyncio.Semaphore(connections)
        self._client: Any = None
        self._starting = asyncio.Lock()

    async def fetch(self, uri: str, sink: ClipSink) -> Stamp | None:
        """See `ClipSource.fetch`."""
        bucket, key = _split(uri)
        try:
            found = await self._call("get_object", Bucket=bucket, Key=key)
            async with found["Body"] as body:
                sink.expect(found.get("ContentLength"))
                while chunk := await body.read(CHUNK_BYTES):
                    await asyncio.to_thread(sink.write, chunk)
            if sink.size_bytes != found.get("ContentLength", sink.size_bytes):
                raise StorageUnavailableError(f"{uri} was cut off while it was read")
        except _ERRORS as error:
            _refuse(error, uri, Stage.FETCH)
        return _stamp(sink.size_bytes, found)

    async def stat(self, uris: Sequence[str]) -> dict[str, Found]:
        """See `ClipSource.stat`."""
        # one object may be named in several ways
        folders: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(dict)
        found: dict[str, Found] = {}
        for uri in uris:
            try:
                bucket, key = _split(uri)
            except BadRecordError:
                found[uri] = bad_uri(uri, Stage.RESOLVE)
                continue
            folder, slash, _ = key.rpartition("/")
            folders[bucket, folder + slash].setdefault(key, []).append(uri)
        parts = [self._stat_folder(where, keys) for where, keys in folders.items()]
        for part in await asyncio.gather(*parts):
            found.update(part)
        return found

    async def close(self) -> None:
        """See `ClipSource.close`."""
        if self._client is not None:
            await self._client.close()

    async def _call(self, method: str, **arguments: Any) -> Any:
        if self._client is None:
            async with self._starting:
                if self._client is None:
                    self._client = await self._fs.set_session()
        # s3fs has no public call that gives an object's ETag together with its bytes
        return await self._fs._call_s3(method, self._fs.kwargs, **arguments)  # noqa: SLF001

    async def _stat_folder(
        self, where: tuple[str, str], keys: dict[str, list[str]]
    ) -> dict[str, Found]:
        listed: dict[str, Found] = {}
        if len(keys) >= DENSE:
            async with self._slots:
                listed = await self._listed(where, keys)
        # what a listing lacks is asked for by name: not every server lists in S3's order
        rest = [uri for key, uris in keys.items() if key not in listed for uri in uris]
        answers = await asyncio.gather(*(self._head(uri) for uri in rest))
        found = {uri: stamp for key, stamp in listed.items() for uri in keys[key]}
        return found | dict(zip(rest, answers, strict=True))

    async def _listed(self, where: tuple[str, str], keys: dict[str, list[str]]) -> dict[str, Found]:
        """Stamps from listing the stretch of a folder that the wanted keys lie in."""
        bucket, prefix = where
        wanted = sorted(key.encode() for key in keys)
        last = wanted[-1].decode()
        arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        # everything after the smallest key less its last character, so that it is included
        arguments["StartAfter"] = wanted[0].decode()[:-1]
        found: dict[str, Found] = {}
        for _ in range(len(keys) // WANTED_PER_PAGE + 1):
            try:
                page = await retried(
                    lambda: self._page(bucket, arguments), self._patience, timeout_s=60
                )
            except StorageUnavailableError:
                if not self._patience.works:
                    raise
                break  # this listing alone: what it lacks is asked for by name
            entries = page.get("Contents", [])
            for entry in entries:
                if entry["Key"] in keys:
                    found[entry["Key"]] = _stamp(entry["Size"], entry)
            past = bool(entries) and entries[-1]["Key"].encode() >= last.encode()
            if past or not page.get("IsTruncated"):
                break
            arguments["ContinuationToken"] = page["NextContinuationToken"]
        return found

    async def _page(self, bucket: str, arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            page = await self._call("list_objects_v2", **arguments)
        except _ERRORS as error:
            uri = f"s3://{bucket}"
            refused = isinstance(error, PermissionError | FileNotFoundError)
            if refused and translate_error(error, uri) is None:
                # reading may be allowed where listing is not
                return {}
            _refuse(error, uri, Stage.RESOLVE)
        return cast("dict[str, Any]", page)

    async def _head(self, uri: str) -> Found:
        async with self._slots:
            try:
                return await retried(lambda: self._head_once(uri), self._patience, timeout_s=60)
            except StorageUnavailableError:
                if not self._patience.works:
                    raise
                return None  # this clip alone: let the download tell

    async def _head_once(self, uri: str) -> Found:
        bucket, key = _split(uri)
        try:
            head = await self._call("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return missing(uri, Stage.RESOLVE)
        except _ERRORS as error:
            if isinstance(error, PermissionError) or _is_bad_request(error):
                # an answer to HEAD has no body to say why: the download's has
                return None
            _refuse(error, uri, Stage.RESOLVE)
        return _stamp(head["ContentLength"], head)


def _refuse(error: Exception, uri: str, stage: Stage) -> NoReturn:
    """Raise what an error means for one clip; one that nobody knows does not end the others."""
    if isinstance(error, ParamValidationError):
        raise BadRecordError(bad_uri(uri, stage)) from None
    try:
        raise_ours(error, uri, stage)
    except _ERRORS:
        raise StorageUnavailableError(f"{uri}: {type(error).__name__}: {error}") from error


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not bucket or not key:
        raise BadRecordError(bad_uri(uri))
    return bucket, key


def _is_bad_request(error: Exception) -> bool:
    """True for HTTP 400, which is also how S3 answers HEAD when a token has expired."""
    answer = getattr(error.__cause__, "response", None) or {}
    return bool(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") == HTTPStatus.BAD_REQUEST)


def _stamp(size_bytes: int, answer: dict[str, Any]) -> Stamp | None:
    etag = str(answer.get("ETag") or "").removeprefix("W/").strip('"')
    return Stamp(size_bytes, etag) if etag else None
