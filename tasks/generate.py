"""Have the engine answer a batch; the segment it writes is the checkpoint."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from prefect import task

from earwitness.builds.batch import BatchRef, load_batch, write_segment
from earwitness.builds.layout import Build
from earwitness.builds.stages import forget_batch, generate_batch, recall_duplicates
from earwitness.identity import KEY_VERSION
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import told

if TYPE_CHECKING:
    from prefect.context import TaskRunContext


def _asked(_context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The cache key of a batch: what it asks, and where its segment lies."""
    batch: BatchRef = parameters["batch"]
    return f"earwitness-{KEY_VERSION}-{batch.build}-{batch.shard}-{batch.batch}-{batch.digest}"


@task(
    name="generate",
    task_run_name="generate batch {batch.batch}",
    cache_key_fn=_asked,
    **{**retrying, "persist_result": True},
)
def generate(batch: BatchRef) -> BatchRef:
    """Ask what is still open and write the batch's segment of outcomes."""
    runtime, build = current(), Build.at(batch.build)
    if build.store.exists(batch.segment):
        return told(batch, "answered by an earlier attempt", "Cached")
    memory = runtime.memory(batch.build, batch.shard)
    folder = runtime.batch_folder(batch.build, batch.shard, batch.batch)
    records = load_batch(folder, "decode")
    # once more: what earlier batches asked may have been answered since this one was fetched
    recall_duplicates(build, memory, records.open_rows())
    decided = runtime.run(generate_batch(runtime, build, memory, records, folder / "audio"))
    with runtime.usage() as usage:
        write_segment(build, batch.segment, decided, records.clip_records(), usage)
    forget_batch(memory, records, batch.segment)
    shutil.rmtree(folder, ignore_errors=True)
    return batch
