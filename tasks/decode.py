"""Decode a batch's clips to what the model hears."""

from __future__ import annotations

import shutil
from dataclasses import replace

from prefect import task

from earwitness.builds.batch import BatchRef, keys_digest, load_batch, save_batch
from earwitness.builds.layout import Build
from earwitness.builds.stages import decode_batch, recall_batch
from earwitness.runtime import current
from tasks.retrying import retrying
from tasks.telling import plainly


@task(name="decode", task_run_name="decode batch {batch.batch}", **retrying)
@plainly
def decode(batch: BatchRef) -> BatchRef:
    """Mono audio at the model's rate; records whose sounds turn out to be answered are reused."""
    runtime, build = current(), Build.at(batch.build)
    folder = runtime.batch_folder(batch.build, batch.shard, batch.batch)
    records = load_batch(folder, "validate")
    audio = folder / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    runtime.run(decode_batch(runtime, records, folder / "clips", audio))
    memory = runtime.memory(batch.build, batch.shard)
    recall_batch(build, memory, records, batch.shard)
    save_batch(folder, "decode", records)
    shutil.rmtree(folder / "clips", ignore_errors=True)
    return replace(batch, digest=keys_digest(records))
