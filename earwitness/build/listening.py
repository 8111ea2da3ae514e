"""Two stages of a batch that listen to its clips: validate and decode, in worker processes."""

from __future__ import annotations

import asyncio
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from earwitness.audio.workers import SEVERAL_CLIPS
from earwitness.records import HeardClip, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from earwitness.build.batch import Batch, ClipState
    from earwitness.runtime import Runtime

T = TypeVar("T")


async def validate_batch(runtime: Runtime, batch: Batch, folder: Path) -> None:
    """Check headers, lengths and rates of a batch's clips without decoding them.

    Args:
        runtime: Gives the worker processes and the policy.
        batch: Clips that cannot be heard get a rejection.
        folder: Where the clips lie.
    """
    pool, policy = runtime.pool, runtime.settings.audio
    clips = batch.open_clips()
    parts = [pool.probe_each([folder / sha for sha in part], policy) for part in _parts(clips)]
    for states, found in zip(clips.values(), await _in_order(parts), strict=True):
        if isinstance(found, Rejection):
            _reject(states, found)
    batch.reject_rows(runtime.settings.max_tokens)


async def decode_batch(runtime: Runtime, batch: Batch, clips: Path, audio: Path) -> None:
    """Decode a batch's clips to mono at the model's rate.

    Args:
        runtime: Gives the worker processes and the policy.
        batch: Clips are marked as heard or rejected.
        clips: Where the fetched clips lie.
        audio: Where `<sha256>.wav` goes; exists.
    """
    pool, policy = runtime.pool, runtime.settings.audio
    wanted = batch.open_clips()
    parts = [
        pool.decode_each([(clips / sha, audio / f"{sha}.wav") for sha in part], policy)
        for part in _parts(wanted)
    ]
    for (sha, states), found in zip(wanted.items(), await _in_order(parts), strict=True):
        if isinstance(found, Rejection):
            _reject(states, found)
            continue
        for state in states:
            state.heard = HeardClip(sha, found.duration_s, found.heard_s)
    batch.reject_rows(runtime.settings.max_tokens)


def _parts(clips: Iterable[str]) -> Iterator[list[str]]:
    """Clips as they go to the workers: a few at once."""
    names = iter(clips)
    while part := list(islice(names, SEVERAL_CLIPS)):
        yield part


async def _in_order(parts: Sequence[Future[list[T]]]) -> list[T]:
    found = await asyncio.gather(*map(asyncio.wrap_future, parts))
    return list(chain.from_iterable(found))


def _reject(states: Iterable[ClipState], rejection: Rejection) -> None:
    for state in states:
        state.rejection = rejection
