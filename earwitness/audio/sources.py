"""Which kind of storage a clip is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from earwitness.addresses import split_protocol
from earwitness.audio.file_source import AnySource, FileSource

if TYPE_CHECKING:
    from earwitness.audio.source import ClipSource

_KINDS = {"file": "file", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_MAX_THREADS = 32


class ClipSources:
    """The storages clips lie on, each opened when first needed; lives in one event loop.

    Args:
        connections: How many clips may be asked for at once on each.
    """

    def __init__(self, connections: int = 64) -> None:
        self.connections = connections
        self._open: dict[str, ClipSource] = {}

    def of(self, uri: str) -> ClipSource:
        """The storage a clip is on."""
        kind = _KINDS.get(split_protocol(uri), "any")
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
            return FileSource(threads)
        if kind == "s3":
            from earwitness.audio.s3_source import S3Source

            return S3Source(self.connections)
        if kind == "http":
            from earwitness.audio.http_source import HttpSource

            return HttpSource(self.connections)
        return AnySource(threads)
