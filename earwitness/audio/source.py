"""What every kind of storage answers about clips, and what its errors mean."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

from earwitness.addresses import split_protocol
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.records import Reason, Rejection, Stage, Stamp
from earwitness.storage import translate_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from earwitness.audio.sink import ClipSink
    from earwitness.errors import EarwitnessError

T = TypeVar("T")

Found = Stamp | Rejection | None
"""A clip's stamp; why there is none to be had; or None: only fetching it can tell."""

ATTEMPTS = 4
FIRST_PAUSE_S = 0.25
_NO_SUCH = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ENODEV}
"""Names that no file can have, links in a circle, devices without a driver."""


class ClipSource(Protocol):
    """Clips on one kind of storage."""

    async def fetch(self, uri: str, sink: ClipSink) -> Stamp | None:
        """Read a clip into the sink, once.

        Returns:
            Its stamp as of this very read; None where storage gives none to be trusted.
        """
        ...

    async def stat(self, uris: Sequence[str]) -> dict[str, Found]:
        """What storage says of clips, without reading them."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


def shown(uri: str) -> str:
    """A URI for messages: without the query, which may be a signature."""
    if split_protocol(uri) in {"http", "https"}:
        parts = urlsplit(uri)
        return parts._replace(
            query="", fragment="", netloc=parts.netloc.rpartition("@")[2]
        ).geturl()
    return uri


def missing(uri: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for a clip that is not there."""
    return Rejection(stage, Reason.CLIP_MISSING, f"there is no clip at {shown(uri)}")


def denied(uri: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for a clip that may not be read."""
    return Rejection(stage, Reason.ACCESS_DENIED, f"no permission to read {shown(uri)}")


def bad_uri(uri: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for an address that cannot be one."""
    return Rejection(stage, Reason.BAD_URI, f"not an address of a clip: {shown(uri)}")


def raise_ours(error: Exception, uri: str, stage: Stage) -> NoReturn:
    """Raise what a storage library's error means for us, or the error itself.

    Raises:
        BadRecordError: The clip is missing or may not be read.
        StorageUnavailableError: It may pass.
        CredentialsError: The credentials themselves were refused.
    """
    ours: EarwitnessError | None = translate_error(error, shown(uri))
    if ours is None and isinstance(error, PermissionError):
        ours = BadRecordError(denied(uri, stage))
    elif ours is None and isinstance(error, OSError) and _says_missing(error):
        ours = BadRecordError(missing(uri, stage))
    if ours is None:
        raise error
    raise ours from error


def _says_missing(error: OSError) -> bool:
    kinds = FileNotFoundError | NotADirectoryError | IsADirectoryError
    return isinstance(error, kinds) or error.errno in _NO_SUCH


async def retried(
    call: Callable[[], Awaitable[T]],
    *,
    attempts: int = ATTEMPTS,
    timeout_s: float = 300.0,
    first_pause_s: float = FIRST_PAUSE_S,
) -> T:
    """Call until it works: exponential pauses with jitter between attempts.

    Args:
        call: Starts one attempt.
        attempts: How many at most.
        timeout_s: How long one attempt may take.
        first_pause_s: Longest pause after the first failure; each later one is three times that.

    Returns:
        What the call returned.

    Raises:
        StorageUnavailableError: Every attempt failed for a reason that may pass.
    """
    for attempt in range(attempts):
        try:
            async with asyncio.timeout(timeout_s):
                return await call()
        except TimeoutError as error:
            if attempt == attempts - 1:
                raise StorageUnavailableError(f"no answer within {timeout_s:g} s") from error
        except StorageUnavailableError:
            if attempt == attempts - 1:
                raise
        pause_s = first_pause_s * 3**attempt
        await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - only spreads load
    raise StorageUnavailableError("no attempt was allowed")
