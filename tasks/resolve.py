"""Find out what a shard's records have cost already, and what is left to ask."""

from __future__ import annotations

from prefect import task

from earwitness.builds.layout import Build
from earwitness.builds.resolve import Resolved, resolve_shard
from earwitness.heap import trim_heap
from earwitness.progress import Advanced, tell
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import plainly, told


@task(name="resolve", task_run_name="resolve shard {shard}", **retrying)
@plainly
def resolve(build: str, shard: int) -> Resolved:
    """Stat the shard's clips, look up earlier builds, cut the rest into batches."""
    found = resolve_shard(current(), Build.at(build), shard)
    trim_heap()
    tell(Advanced(found.generated, found.reused, found.rejected))
    whole = not found.batches and not found.finished and found.reused > 0
    message = f"{found.reused:,} of {found.rows:,} answers reused, {found.rejected:,} rejected"
    return told(
        found, f"Cached: {message}" if found.reused else message, "Cached" if whole else None
    )
