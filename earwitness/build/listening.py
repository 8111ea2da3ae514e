"""Two stages of a batch that listen to its clips: validate and decode, in worker processes."""

from __future__ import annotations

import asyncio
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from earwitness.audio.facts import facts_version, faulty, with_earlier_sounds
from earwitness.audio.workers import SEVERAL_CLIPS
from earwitness.records import ClipFacts, Rejection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from earwitness.build.batch import Batch, ClipState
    from earwitness.runtime import Runtime
    from earwitness.settings import AudioSettings

T = TypeVar("T")


async def validate_batch(runtime: Runtime, batch: Batch, folder: Path) -> None:
    """Check headers, lengths and rates of a batch's clips without decoding them.

    Args:
        runtime: Gives the worker processes and the policy.
        batch: Clips that cannot be heard get a rejection. Clips whose facts are known were checked
            before.
        folder: Where the clips lie.
    """
    policy = runtime.settings.audio
    clips = {sha: one for sha, one in batch.open_clips().items() if one[0].facts is None}
    parts = [runtime.pool.probe_each([folder / sha for sha in part]) for part in _parts(clips)]
    for states, found in zip(clips.values(), await _in_order(parts), strict=True):
        if isinstance(found, Rejection):
            _reject(states, found, policy)
            continue
        facts = ClipFacts(found.container, facts_version(found.container), found.duration_s)
        for state in states:
            state.learn(facts, policy)
    batch.reject_rows(runtime.settings.max_tokens)


async def decode_batch(runtime: Runtime, batch: Batch, clips: Path, audio: Path) -> None:
    """Decode a batch's clips to mono at the model's rate.

    Args:
        runtime: Gives the worker processes and the policy.
        batch: Clips get their sound or a rejection.
        clips: Where the fetched clips lie.
        audio: Where `<sha256>.wav` goes; exists.
    """
    policy = runtime.settings.audio
    wanted = batch.open_clips()
    parts = [
        runtime.pool.decode_each([(clips / sha, audio / f"{sha}.wav") for sha in part], policy)
        for part in _parts(wanted)
    ]
    for states, found in zip(wanted.values(), await _in_order(parts), strict=True):
        if isinstance(found, Rejection):
            _reject(states, found, policy)
            continue
        for state in states:
            state.learn(with_earlier_sounds(found, state.facts), policy)
    batch.reject_rows(runtime.settings.max_tokens)


def _parts(clips: Iterable[str]) -> Iterator[list[str]]:
    """Clips as they go to the workers: a few at once."""
    names = iter(clips)
    while part := list(islice(names, SEVERAL_CLIPS)):
        yield part


async def _in_order(parts: Sequence[Future[list[T]]]) -> list[T]:
    found = await asyncio.gather(*map(asyncio.wrap_future, parts))
    return list(chain.from_iterable(found))


def _reject(states: Iterable[ClipState], rejection: Rejection, policy: AudioSettings) -> None:
    for state in states:
        if rejection.transient:
            state.rejection = rejection
        else:
            state.learn(faulty(rejection), policy)
