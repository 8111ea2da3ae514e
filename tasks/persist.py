"""Write a shard's files, its receipt last."""

from __future__ import annotations

from prefect import task

from earwitness.build.layout import Build, Receipt
from earwitness.build.persist import persist_shard
from tasks.retrying import retrying
from tasks.telling import told


@task(name="persist", task_run_name="persist shard {shard}", **retrying)
def persist(build: str, shard: int) -> Receipt:
    """Join plan, segments and reused outcomes into data, rejections, cache and receipt."""
    receipt = persist_shard(Build.at(build), shard)
    counts = receipt.counts
    message = f"{counts.rows:,} rows: {counts.reused:,} reused, {counts.rejected:,} rejected"
    return told(receipt, message)
