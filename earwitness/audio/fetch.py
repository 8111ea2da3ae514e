"""Bringing clips into the scratch folder: stamps and bytes, from whichever storage they are on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from earwitness.access import AccessPolicy
from earwitness.addresses import split_protocol
from earwitness.audio.file_source import AnySource, FileSource
from earwitness.audio.sink import ClipSink
from earwitness.audio.source import bad_uri, retried, shown
from earwitness.errors import BadRecordError, EarwitnessError
from earwitness.patience import Patience
from earwitness.records import Reason, Rejection, Stage
from earwitness.unexpected import rejection_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from earwitness.audio.source import ClipSource, Found, Pace
    from earwitness.errors import StorageUnavailableError
    from earwitness.records import Stamp


_KINDS = {"file": "file", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_MAX_THREADS = 32


class ClipSources:
    """The storages clips lie on, each opened when first needed; lives in one event loop.

    Args:
        connections: How many clips may be asked for at once on each.
        access: Where clips may come from. Default: from public addresses and object storage.
        pace: How slow a web server may be. Default: see `Pace`.
    """

    def __init__(
        self, connections: int = 64, *, access: AccessPolicy | None = None, pace: Pace | None = None
    ) -> None:
        self.connections = connections
        self._access = access or AccessPolicy()
        self._pace = pace
        self._open: dict[str, ClipSource] = {}

    def of(self, uri: str) -> ClipSource:
        """The storage a clip is on.

        Raises:
            BadRecordError: `bad_uri`: nothing here reads such addresses.
        """
        protocol = split_protocol(uri)
        if protocol not in self._access.schemes:
            raise BadRecordError(bad_uri(uri))
        kind = _KINDS.get(protocol, "any")
        if kind not in self._open:
            self._open[kind] = self._make(kind)
        return self._open[kind]

    async def close(self) -> None:
        """Let go of connections and threads."""
        while self._open:
            _, source = self._open.popitem()
            await source.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _make(self, kind: str) -> ClipSource:
        threads = min(_MAX_THREADS, self.connections)
        if kind == "file":
            return FileSource(threads, self._access)
        if kind == "s3":
            from earwitness.audio.s3_source import S3Source

            return S3Source(self.connections)
        if kind == "http":
            from earwitness.audio.http_source import HttpSource

            return HttpSource(self.connections, self._access, self._pace)
        return AnySource(threads)


async def stat_clips(
    uris: Iterable[str],
    *,
    sources: ClipSources | None = None,
    access: AccessPolicy | None = None,
) -> dict[str, Found]:
    """Ask storage for the stamps of many clips: listings where dense, single calls otherwise.

    Args:
        uris: Absolute addresses; repetitions are asked once.
        sources: Opened storages to use. Default: opened here and closed again.
        access: Where clips may come from, for storages opened here.

    Returns:
        For each URI its stamp, equal to the one a fetch of the same bytes gives; or the rejection
        of a clip that is not there, or must not be asked for; or None where only fetching can
        tell.

    Raises:
        StorageUnavailableError: Object storage failed at every attempt.
        CredentialsError: Object storage refused the credentials themselves.
    """
    if sources is None:
        async with ClipSources(access=access) as own:
            return await stat_clips(uris, sources=own)
    groups: dict[ClipSource, list[str]] = defaultdict(list)
    found: dict[str, Found] = {}
    for uri in dict.fromkeys(uris):
        try:
            groups[sources.of(uri)].append(uri)
        except BadRecordError:
            found[uri] = bad_uri(uri, Stage.RESOLVE)
    parts = (_stat_group(source, group) for source, group in groups.items())
    for part in await asyncio.gather(*parts):
        found.update(part)
    return found


async def _stat_group(source: ClipSource, uris: list[str]) -> dict[str, Found]:
    try:
        return await source.stat(uris)
    except Exception as error:
        # one clip's own error does not end the others
        if isinstance(error, EarwitnessError) and not isinstance(error, BadRecordError):
            raise
    answers = await asyncio.gather(*(_stat_alone(source, uri) for uri in uris))
    return dict(zip(uris, answers, strict=True))


async def _stat_alone(source: ClipSource, uri: str) -> Found:
    try:
        return (await source.stat([uri]))[uri]
    except Exception as error:  # noqa: BLE001 - whatever it is, it is about this clip alone
        rejection = rejection_of(error, Stage.RESOLVE, shown(uri))
        # whether the clip can be had, fetching it tells
        return None if rejection.transient else rejection


DEFAULT_CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class FetchedClip:
    """A clip brought to local disk.

    Attributes:
        uri: Where it came from.
        sha256: Of its bytes, hex: its identity.
        size_bytes: Its length.
        stamp: What storage said of it during this very read; None: always fetch it again.
        path: Where it lies now.
    """

    uri: str
    sha256: str
    size_bytes: int
    stamp: Stamp | None
    path: Path


class ClipFetcher:
    """Fetches clips from wherever they are; lives in the event loop it is used in.

    Args:
        concurrency: How many clips at once.
        timeout_s: How long one attempt at one clip may take.
        access: Where clips may come from. Default: from public addresses and object storage.
        pace: How slow a web server may be. Default: see `Pace`.
    """

    def __init__(
        self,
        concurrency: int = DEFAULT_CONCURRENCY,
        *,
        timeout_s: float = 300.0,
        access: AccessPolicy | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._sources = ClipSources(concurrency, access=access, pace=pace)
        self._slots = asyncio.Semaphore(concurrency)
        self._timeout_s = timeout_s
        self._patience: dict[ClipSource, Patience] = defaultdict(Patience)

    async def fetch(self, uri: str, folder: Path, max_bytes: int) -> FetchedClip:
        """Bring one clip to `folder/<sha256>`.

        Args:
            uri: Absolute address of the clip.
            folder: An existing folder.
            max_bytes: A larger clip is rejected, unread where storage tells its size.

        Returns:
            The clip, its hash and its stamp.

        Raises:
            BadRecordError: `clip_missing`, `access_denied`, `clip_empty`, `clip_too_large`,
                `bad_uri`, `address_refused`.
            StorageUnavailableError: Storage failed at every attempt.
            CredentialsError: Storage refused the credentials themselves.
            FatalError: The scratch folder's disk is full.
        """
        async with self._slots:
            return await retried(
                lambda: self._fetch_once(uri, folder, max_bytes),
                self._patience[self._sources.of(uri)],
                timeout_s=self._timeout_s,
            )

    async def stat(self, uri: str) -> Found:
        """What storage says of one clip; see `earwitness.audio.fetch.stat_clips`."""
        return (await stat_clips([uri], sources=self._sources))[uri]

    async def close(self) -> None:
        """Let go of connections and threads."""
        await self._sources.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _fetch_once(self, uri: str, folder: Path, max_bytes: int) -> FetchedClip:
        sink = ClipSink(folder, max_bytes)
        try:
            stamp = await self._sources.of(uri).fetch(uri, sink)
            sha256, path = sink.finish()
        finally:
            sink.discard()
        return FetchedClip(uri, sha256, sink.size_bytes, stamp, path)


def unavailable(error: StorageUnavailableError) -> Rejection:
    """The transient rejection of a clip that storage would not give now.

    Its detail leaves out what differs from attempt to attempt (addresses, request ids).
    """
    if isinstance(error.__cause__, TimeoutError):
        detail = (
            "the clip's storage timed out at every attempt; the next run fetches the clip again"
        )
        return Rejection(Stage.FETCH, Reason.FETCH_TIMEOUT, detail)
    detail = "the clip's storage failed at every attempt; the next run fetches the clip again"
    return Rejection(Stage.FETCH, Reason.FETCH_FAILED, detail)
