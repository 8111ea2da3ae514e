"""Check what can be known of a batch's clips without decoding them."""

from __future__ import annotations

from prefect import task

from earwitness.builds.batch import BatchRef, load_batch, save_batch
from earwitness.builds.stages import validate_batch
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import plainly


@task(name="validate", task_run_name="validate batch {batch.batch}", **retrying)
@plainly
def validate(batch: BatchRef) -> BatchRef:
    """Containers, headers against content, lengths, channels, rates."""
    runtime = current()
    folder = runtime.batch_folder(batch.build, batch.shard, batch.batch)
    records = load_batch(folder, "fetch")
    runtime.run(validate_batch(runtime, records, folder / "clips"))
    save_batch(folder, "validate", records)
    return batch
