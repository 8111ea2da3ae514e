"""Bring a batch's clips into scratch."""

from __future__ import annotations

from prefect import task

from earwitness.builds.batch import BatchRef, load_batch, save_batch
from earwitness.builds.layout import Build
from earwitness.builds.stages import fetch_batch, recall_batch
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import plainly


@task(name="fetch", task_run_name="fetch batch {batch.batch}", **retrying)
@plainly
def fetch(batch: BatchRef, clips_in_shard: int) -> BatchRef:
    """Download what is not known yet; records whose bytes are known and answered are reused."""
    runtime, build = current(), Build.at(batch.build)
    memory = runtime.memory(batch.build, batch.shard)
    folder = runtime.batch_folder(batch.build, batch.shard, batch.batch)
    records = load_batch(folder, "resolve")
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    runtime.run(fetch_batch(runtime, memory, records, clips, clips_in_shard=clips_in_shard))
    recall_batch(build, memory, records, batch.shard)
    if records.open_rows():
        runtime.start_engine()
    save_batch(folder, "fetch", records)
    return batch
