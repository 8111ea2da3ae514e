"""What storage knows of clips without reading them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from earwitness.audio.sources import ClipSources

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.audio.source import ClipSource, Found


async def stat_clips(
    uris: Iterable[str], *, sources: ClipSources | None = None
) -> dict[str, Found]:
    """Ask storage for the stamps of many clips: listings where dense, single calls otherwise.

    Args:
        uris: Absolute addresses; repetitions are asked once.
        sources: Opened storages to use. Default: opened here and closed again.

    Returns:
        For each URI its stamp, equal to the one a fetch of the same bytes gives; or the rejection
        of a clip that is not there; or None where only fetching can tell.

    Raises:
        StorageUnavailableError: Object storage failed at every attempt.
        CredentialsError: Object storage refused the credentials themselves.
    """
    if sources is None:
        async with ClipSources() as own:
            return await stat_clips(uris, sources=own)
    groups: dict[ClipSource, list[str]] = defaultdict(list)
    for uri in dict.fromkeys(uris):
        groups[sources.of(uri)].append(uri)
    found: dict[str, Found] = {}
    for part in await asyncio.gather(*(source.stat(group) for source, group in groups.items())):
        found.update(part)
    return found
