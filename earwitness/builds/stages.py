"""The four stages of a batch: fetch, validate, decode and generate.

Each takes a batch in memory and decides what it can; loading, storing and retrying is the tasks'.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from earwitness.audio.facts import facts_version, faulty, with_earlier_sounds
from earwitness.audio.fetch import unavailable
from earwitness.audio.pool import SEVERAL_CLIPS
from earwitness.audio.source import shown
from earwitness.builds.batch import Batch, Decided, Segment
from earwitness.builds.failures import check_missing, check_storage
from earwitness.builds.sources import outcomes_of
from earwitness.cache.tables import outcome_from_row, still_right
from earwitness.engine.client import AskRequest
from earwitness.errors import StorageUnavailableError
from earwitness.identity import cache_key, request_seed
from earwitness.records import (
    TRANSIENT_REASONS,
    Answer,
    ClipFacts,
    Outcome,
    Reason,
    Rejection,
    Stage,
)
from earwitness.unexpected import rejection_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from earwitness.audio.fetch import FetchedClip
    from earwitness.builds.batch import ClipState, RowState
    from earwitness.builds.layout import Build
    from earwitness.cache import Lookup
    from earwitness.runtime import Runtime, ShardMemory
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


async def fetch_batch(
    runtime: Runtime,
    memory: ShardMemory,
    batch: Batch,
    folder: Path,
    *,
    clips_in_shard: int | None = None,
) -> None:
    """Bring a batch's clips into its scratch folder and learn their SHA-256.

    Args:
        runtime: Gives the fetcher.
        memory: Fetches of the shard's other batches in flight; their clips are linked, not fetched.
        batch: Its clips get content, what earlier builds know of it, or a rejection.
        folder: Content-addressed folder of this batch's clips; exists.
        clips_in_shard: Distinct clips of the shard that have to be fetched, which failures that
            will pass are held against; None: nothing.

    Raises:
        CredentialsError: Storage refused the credentials themselves.
        ShardFailedError: Too many clips of the shard fail to come, or are missing; told at once,
            not when each one has been tried for a minute.
    """
    limit = runtime.settings.audio.max_clip_bytes
    wanted = dict.fromkeys(uri for row in batch.open_rows() for uri in row.clips)

    async def bring(clip: ClipState) -> None:
        why = ""
        try:
            fetched = await _fetch_once(runtime, memory, clip.uri, folder, limit)
        except StorageUnavailableError as error:
            clip.rejection, why = unavailable(error), str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this clip alone
            clip.rejection = rejection_of(error, Stage.FETCH, shown(clip.uri))
        if clip.rejection is not None:
            if clip.rejection.transient:
                memory.failed_clips[clip.uri] = why or clip.rejection.detail
                if clips_in_shard is not None:
                    check_storage(memory.failed_clips, clips_in_shard)
            elif clip.rejection.reason is Reason.CLIP_MISSING:
                memory.missing_clips.add(clip.uri)
                if memory.most_missing is not None:
                    check_missing(memory.missing_clips, memory.clips, memory.most_missing)
            return
        clip.sha256 = fetched.sha256
        clip.stamp = str(fetched.stamp) if fetched.stamp is not None else ""
        seen = clip.seen
        if seen is not None and seen.facts is not None and seen.sha256 == fetched.sha256:
            clip.learn(seen.facts, runtime.settings.audio)

    await asyncio.gather(*(bring(batch.clips[uri]) for uri in wanted))
    batch.reject_rows(runtime.settings.max_tokens)


async def _fetch_once(
    runtime: Runtime, memory: ShardMemory, uri: str, folder: Path, limit: int
) -> FetchedClip:
    """Fetch a URI, or link what another batch of the shard fetched or is fetching."""
    earlier = memory.fetches.get(uri)
    if earlier is None:
        mine = asyncio.ensure_future(runtime.fetcher.fetch(uri, folder, limit))
        memory.fetches[uri] = mine
        try:
            fetched = await mine
        except BaseException:
            memory.fetches.pop(uri, None)
            raise
        runtime.downloads += 1
        return fetched
    try:
        fetched = await asyncio.shield(earlier)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not earlier.cancelled() or (task is not None and task.cancelling()):
            raise
        # the batch that fetched it was cancelled, this one was not
        return await _fetch_once(runtime, memory, uri, folder, limit)
    own = folder / fetched.sha256
    try:
        if fetched.path != own and not own.exists():
            os.link(fetched.path, own)
    except OSError:  # the other batch is done and its files are gone
        memory.fetches.pop(uri, None)
        return await _fetch_once(runtime, memory, uri, folder, limit)
    return fetched


def forget_batch(memory: ShardMemory, batch: Batch, segment: str) -> None:
    """Drop what the shard's memory holds of a finished batch; its segment has it all.

    Args:
        memory: The shard's memory.
        batch: The batch, its segment written.
        segment: Path of the segment.
    """
    for uri in batch.clips:
        memory.fetches.pop(uri, None)
    for row in batch.rows:
        if row.cache_key in memory.questions:
            # in this order: a batch that no longer finds the question finds where its answer is
            memory.answered[bytes.fromhex(row.cache_key)] = segment
            memory.questions.pop(row.cache_key, None)


def recall_duplicates(build: Build, memory: ShardMemory, rows: Sequence[RowState]) -> None:
    """Decide records that an earlier batch of the shard asked the very same way.

    Args:
        build: Gives the segments.
        memory: Knows which segment holds which question.
        rows: Undecided records with a cache key.
    """
    wanted: dict[str, dict[str, list[RowState]]] = {}
    for row in rows:
        segment = memory.answered.get(bytes.fromhex(row.cache_key))
        if segment is not None:
            wanted.setdefault(segment, {}).setdefault(row.cache_key, []).append(row)
    for path, by_key in wanted.items():
        for one in _stored(build, path, by_key):
            for row in by_key[one.outcome.cache_key]:
                row.outcome, row.reused = replace(one.outcome, clips=row.heard), one.reused


def _stored(build: Build, path: str, keys: Collection[str]) -> Iterator[Decided]:
    """The rows of a segment that have one of these cache keys."""
    for one in Segment(build, path).decided():
        if one.outcome.cache_key in keys:
            yield one


def key_rows(batch: Batch, question: str) -> list[RowState]:
    """Give every undecided record whose sounds are known its cache key.

    Args:
        batch: A batch.
        question: The build's question digest.

    Returns:
        The records that have got one now.
    """
    keyed = []
    for row in batch.open_rows():
        clips = [batch.clips[uri] for uri in row.clips]
        sounds = [clip.sound.pcm_sha256 for clip in clips if clip.sound is not None]
        if row.cache_key or len(sounds) < len(clips):
            continue
        row.cache_key = cache_key(sounds, row.messages, question)
        row.heard = tuple(heard for clip in clips if (heard := clip.heard))
        keyed.append(row)
    return keyed


def recall_rows(
    build: Build, rows: Sequence[RowState], shard: int, outcomes: Lookup | None = None
) -> None:
    """Decide records whose outcome an earlier build has.

    Args:
        build: Gives the limits and the reasons to ask again.
        rows: Records with a cache key.
        shard: Number of the shard.
        outcomes: Where they are looked up. Default: in what the build reuses.
    """
    settings = build.plan.settings
    outcomes = outcomes or outcomes_of(build)
    again = set(build.gates.retry_reasons)

    rights: dict[bytes, Outcome] = {}

    def right(known: dict[str, Any]) -> bool:
        if known["reason"] in TRANSIENT_REASONS:
            return False
        outcome = outcome_from_row(known["key"].hex(), known)
        if not still_right(outcome, settings.max_tokens, settings.engine.max_model_len):
            return False
        rights[known["key"]] = outcome
        return True

    keys = [bytes.fromhex(row.cache_key) for row in rows if row.cache_key]
    found = outcomes.find(
        # of a rejection, a newer build's retry may know better
        keys,
        shard,
        fits=right,
        surely=lambda known: known["reason"] is None,
    )
    for row in rows:
        key = bytes.fromhex(row.cache_key)
        known = found.get(key)
        if known is None or known["reason"] in again:
            continue
        if known["reason"] in TRANSIENT_REASONS:
            row.strikes = known["strikes"] or 0
        elif key in rights:
            row.outcome, row.reused = replace(rights[key], clips=row.heard), True


def recall_batch(build: Build, memory: ShardMemory, batch: Batch, shard: int) -> None:
    """Decide the records whose sounds have become known, as far as their outcome is stored.

    Args:
        build: Gives what it reuses, the segments, the limits and the reasons to ask again.
        memory: Knows what other batches of the shard asked.
        batch: Its undecided records get a cache key, or their outcome.
        shard: Number of the shard.
    """
    known = key_rows(batch, build.plan.question_digest)
    recall_rows(build, known, shard)
    recall_duplicates(build, memory, [row for row in known if row.outcome is None])


async def generate_batch(
    runtime: Runtime, build: Build, memory: ShardMemory, batch: Batch, audio: Path
) -> list[Decided]:
    """Ask the engine what is still open; equal questions are asked once.

    Args:
        runtime: Gives the engine and the sampling settings.
        build: Gives the segments.
        memory: Questions of the shard's other batches, asked or being asked.
        batch: A decoded batch.
        audio: Where `<sha256>.wav` lies.

    Returns:
        Every record of the batch with its outcome, in order.

    Raises:
        EngineUnavailableError: The engine does not come back.
    """

    async def decide(row: RowState) -> Decided:
        asked_here = False
        if row.outcome is not None:
            outcome, reused = row.outcome, row.reused
        else:
            question = memory.questions.get(row.cache_key)
            stored = bytes.fromhex(row.cache_key) in memory.answered
            asked_here = question is None and not stored
            if question is None:
                row.strikes = max(row.strikes, memory.strikes.get(row.cache_key, 0))
                ask = partial(_ask, runtime, row, audio)
                finding = _find_out(build, memory, row.cache_key, ask)
                question = asyncio.ensure_future(finding)
                memory.question(row.cache_key, question)
            # it is the shard's question: other batches wait for it, whatever becomes of this one
            outcome, reused = await asyncio.shield(question)
            # equal sounds may be of other clips
            outcome = replace(outcome, clips=row.heard)
        memory.advance(row.row, outcome, generated=asked_here)
        return Decided(row.row, outcome, reused)

    asked = batch.side_by_side()
    decided = dict(zip(map(id, asked), await asyncio.gather(*map(decide, asked)), strict=True))
    return [decided[id(row)] for row in batch.rows]


async def _find_out(
    build: Build, memory: ShardMemory, cache_key: str, ask: Callable[[], Awaitable[Outcome]]
) -> tuple[Outcome, bool]:
    """Read the outcome from the segment of the batch that asked the same and ended, or ask."""
    segment = memory.answered.get(bytes.fromhex(cache_key))
    if segment is not None:
        # reading may take a minute where storage fails: never in the loop
        found = await asyncio.to_thread(lambda: list(_stored(build, segment, {cache_key})))
        if found:
            return found[-1].outcome, found[-1].reused
    return await ask(), False


async def _ask(runtime: Runtime, row: RowState, audio: Path) -> Outcome:
    settings = runtime.settings
    request = AskRequest(
        messages=tuple(row.messages),
        clips=tuple(audio / f"{clip.sha256}.wav" for clip in row.heard),
        sampling=settings.sampling,
        max_tokens=settings.max_tokens,
        seed=None if settings.sampling.seed is None else request_seed(row.cache_key),
        strikes=row.strikes,
    )
    said: Answer | Rejection
    try:
        said = await runtime.engine.ask(request)
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends this request alone
        said = rejection_of(error, Stage.GENERATE, f"row {row.row}")
    limits = (settings.max_tokens, settings.engine.max_model_len)
    if isinstance(said, Answer):
        return Outcome(row.cache_key, said, None, row.heard, *limits)
    return Outcome(row.cache_key, None, said, row.heard, *limits)
