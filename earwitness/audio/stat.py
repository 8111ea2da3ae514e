"""What storage knows of clips without reading them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from earwitness.audio.source import bad_uri, shown
from earwitness.audio.sources import ClipSources
from earwitness.errors import BadRecordError, EarwitnessError
from earwitness.records import Stage
from earwitness.unexpected import rejection_of

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
