"""What storage knows of clips without reading them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from earwitness.audio.source import bad_uri
from earwitness.audio.sources import ClipSources
from earwitness.errors import BadRecordError
from earwitness.records import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from earwitness.access import AccessPolicy
    from earwitness.audio.source import ClipSource, Found


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
    for part in await asyncio.gather(*(source.stat(group) for source, group in groups.items())):
        found.update(part)
    return found
