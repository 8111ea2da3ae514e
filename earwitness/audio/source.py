"""What every kind of storage answers about clips, what its errors mean, and how slow it may be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit

from earwitness.addresses import split_protocol, without_secrets
from earwitness.errors import BadRecordError, StorageUnavailableError
from earwitness.patience import FIRST_PAUSE_S, MOST_ATTEMPTS, Attempts
from earwitness.records import Reason, Rejection, Stage, Stamp
from earwitness.storage_errors import says_denied, says_missing, translate_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from earwitness.audio.sink import ClipSink
    from earwitness.errors import EarwitnessError
    from earwitness.patience import Patience


T = TypeVar("T")

_SHOWN = 1000
"""So many characters of an address are shown; one may be a whole file in base64."""

Found = Stamp | Rejection | None
"""A clip's stamp; why there is none to be had; or None: only fetching it can tell."""


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
    """A URI for messages: without the query, which may be a signature, and of bearable length."""
    text = _without_query(uri)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


def _without_query(uri: str) -> str:
    if split_protocol(uri) in {"http", "https"}:
        try:
            parts = urlsplit(uri)
        except ValueError:  # a host that is none
            return without_secrets(uri.partition("?")[0])
        return parts._replace(
            query="", fragment="", netloc=parts.netloc.rpartition("@")[2]
        ).geturl()
    return uri


def missing(uri: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for a clip that is not there."""
    return Rejection(stage, Reason.CLIP_MISSING, f"there is no clip at {shown(uri)}")


def denied(uri: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for a clip that may not be read."""
    return Rejection(stage, Reason.ACCESS_DENIED, f"there is no permission to read {shown(uri)}")


def bad_uri(uri: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for an address that cannot be one."""
    return Rejection(
        stage, Reason.BAD_URI, f"this is not a valid path or URL of a clip: {shown(uri)}"
    )


def refused(uri: str, why: str, stage: Stage = Stage.FETCH) -> Rejection:
    """The rejection for an address that clips may not come from."""
    return Rejection(stage, Reason.ADDRESS_REFUSED, f"{shown(uri)}: {why}")


def raise_ours(error: Exception, uri: str, stage: Stage) -> NoReturn:
    """Raise what a storage library's error means for us, or the error itself.

    Raises:
        BadRecordError: The clip is missing or may not be read.
        StorageUnavailableError: It may pass.
        CredentialsError: The credentials themselves were refused.
    """
    ours: EarwitnessError | None = translate_error(error, shown(uri))
    if ours is None and says_denied(error):
        ours = BadRecordError(denied(uri, stage))
    elif ours is None and says_missing(error):
        ours = BadRecordError(missing(uri, stage))
    if ours is None:
        raise error
    raise ours from error


async def retried(
    call: Callable[[], Awaitable[T]],
    patience: Patience,
    *,
    attempts: int = MOST_ATTEMPTS,
    timeout_s: float = 300.0,
    first_pause_s: float = FIRST_PAUSE_S,
) -> T:
    """Call until it works, for about a minute: exponential pauses with jitter between attempts.

    Args:
        call: Starts one attempt.
        patience: What is known of the storage that is asked.
        attempts: How many at most.
        timeout_s: How long one attempt may take.
        first_pause_s: Longest pause after the first failure; each later one is twice that.

    Returns:
        What the call returned.

    Raises:
        StorageUnavailableError: Every attempt failed for a reason that may pass.
    """
    tried = Attempts(patience, first_pause_s)
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                answer = await call()
        except TimeoutError as error:
            pause_s = tried.failed()
            if pause_s is None or tried.failures >= attempts:
                raise StorageUnavailableError(f"no answer within {timeout_s:g} s") from error
        except StorageUnavailableError:
            pause_s = tried.failed()
            if pause_s is None or tried.failures >= attempts:
                raise
        except BadRecordError:
            tried.worked()
            raise
        else:
            tried.worked()
            return answer
        await asyncio.sleep(pause_s)


@dataclass(frozen=True, slots=True)
class Pace:
    """Bounds on one answer; the attempt as a whole is bounded besides.

    Attributes:
        answer_s: Until an answer's status and headers are there, for each redirect anew.
        silence_s: Between two pieces of a body.
        window_s: A body's speed is looked at after every so much waiting for it.
        bytes_per_s: Slower over a window than this is no answer.
        resume_bytes: A body that breaks off goes on where it stopped if at least this much came.
    """

    answer_s: float = 60.0
    silence_s: float = 60.0
    window_s: float = 30.0
    bytes_per_s: float = 1000.0
    resume_bytes: int = 65_536
