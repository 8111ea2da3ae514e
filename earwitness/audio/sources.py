"""Which kind of storage a clip is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from earwitness.access import AccessPolicy
from earwitness.addresses import split_protocol
from earwitness.audio.file_source import AnySource, FileSource
from earwitness.audio.source import bad_uri
from earwitness.errors import BadRecordError

if TYPE_CHECKING:
    from earwitness.audio.pace import Pace
    from earwitness.audio.source import ClipSource

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
