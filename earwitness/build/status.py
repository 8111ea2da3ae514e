"""How far a build is."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from earwitness.build.layout import Counts
from earwitness.build.lease import lease_holder, told_holder
from earwitness.build.show import open_outcomes

if TYPE_CHECKING:
    from earwitness.build.layout import Build

_READERS = 16
PLANNED_OUT = "rejected in the manifest"
"""Stands for the reasons of an unfinished shard's lines, which are counted but not read."""


@dataclass(frozen=True, slots=True)
class Status:
    """How far a build is.

    Attributes:
        published: True once it is published.
        holder: Who works on it now, for a person; empty: nobody.
        shards: How many there are.
        done: How many are finished.
        started: Numbers of the unfinished ones that hold outcomes already.
        waiting: Numbers of the ones nobody has touched.
        rows: Rows of the manifest.
        counts: The ledger so far: finished shards, and what the others know.
    """

    published: bool
    holder: str
    shards: int
    done: int
    started: tuple[int, ...]
    waiting: tuple[int, ...]
    rows: int
    counts: Counts


def build_status(build: Build) -> Status:
    """How far a build is, from its receipts and checkpoints.

    Args:
        build: A planned build.
    """
    plan = build.plan
    missing = build.missing_shards()
    done = sorted(set(range(len(plan.shards))).difference(missing))
    worked = {path.split("/")[1] for path in build.store.sizes("work")}
    started = [number for number in missing if f"shard-{number:05d}" in worked]
    with ThreadPoolExecutor(_READERS) as pool:
        receipts = pool.map(build.receipt, done)
        counts = [receipt.counts for receipt in receipts if receipt is not None]
        counts += pool.map(lambda number: _so_far(build, number), started)
    return Status(
        published=build.published,
        holder=_holder(build),
        shards=len(plan.shards),
        done=len(done),
        started=tuple(started),
        waiting=tuple(sorted(set(missing).difference(started))),
        rows=plan.rows,
        counts=sum(counts, Counts()),
    )


def _holder(build: Build) -> str:
    held = lease_holder(build)
    return "" if held is None else told_holder(held)


def _so_far(build: Build, shard: int) -> Counts:
    """The ledger of a shard under way: only decided rows count."""
    decided = {one.row: one for one in reversed(open_outcomes(build, shard))}.values()
    reasons = Counter(
        str(one.outcome.rejection.reason) for one in decided if one.outcome.rejection is not None
    )
    planned_out = build.plan.shards[shard].rejected
    if planned_out:
        reasons[PLANNED_OUT] = planned_out
    answers = [one for one in decided if one.outcome.answer is not None]
    said = [one.outcome.answer for one in answers if one.outcome.answer is not None]
    generated = len({one.outcome.cache_key for one in answers if not one.reused})
    return Counts(
        rows=len(decided) + planned_out,
        answered=len(answers),
        generated=generated,
        reused=len(answers) - generated,
        rejected=sum(reasons.values()),
        reasons=dict(sorted(reasons.items())),
        audio_s=sum(clip.heard_s for one in answers for clip in one.outcome.clips),
        prompt_tokens=sum(answer.prompt_tokens for answer in said),
        completion_tokens=sum(answer.completion_tokens for answer in said),
    )
