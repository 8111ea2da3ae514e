"""Write a shard's files, its receipt last."""

from __future__ import annotations

import os
from collections.abc import Sequence  # noqa: TC003 - Prefect reads it

from prefect import task

from earwitness.builds.layout import Build, Receipt
from earwitness.builds.persist import persist_shard
from earwitness.engine.shared import WORKER_VARIABLE
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import plainly, told


@task(name="persist", task_run_name="persist shard {shard}", **retrying)
@plainly
def persist(build: str, shard: int, segments: Sequence[str] = ()) -> Receipt:
    """Join plan, segments and reused outcomes into the shard's files and its receipt."""
    runtime = current()
    whose = {"engine": runtime.engine_version(), "worker": os.environ.get(WORKER_VARIABLE, "")}
    with runtime.usage() as usage:
        receipt = persist_shard(Build.at(build), shard, segments=segments, usage=usage, **whose)
    return told(receipt, shard_message(receipt))


def shard_message(receipt: Receipt) -> str:
    """What happened in a shard: `20,000 rows: 19,910 reused, 7 rejected`."""
    counts = receipt.counts
    told_by = f" (by worker {receipt.worker})" if receipt.worker else ""
    rows = f"{counts.rows:,} rows: {counts.reused:,} reused"
    return f"{rows}, {counts.generated:,} generated, {counts.rejected:,} rejected{told_by}"
