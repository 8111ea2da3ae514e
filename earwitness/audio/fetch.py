"""Bringing clips into the scratch folder: many at once, hashed on the way, named by their bytes."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from earwitness.audio.sink import ClipSink
from earwitness.audio.source import retried
from earwitness.audio.sources import ClipSources
from earwitness.audio.stat import stat_clips
from earwitness.patience import Patience
from earwitness.records import Reason, Rejection, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from earwitness.access import AccessPolicy
    from earwitness.audio.pace import Pace
    from earwitness.audio.source import ClipSource, Found
    from earwitness.errors import StorageUnavailableError
    from earwitness.records import Stamp

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
        """What storage says of one clip; see `earwitness.audio.stat.stat_clips`."""
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
