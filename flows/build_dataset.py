"""A manifest in, a published dataset out."""

from __future__ import annotations

from typing import Any

from prefect import flow

from earwitness.errors import ShardFailedError, StorageUnavailableError
from earwitness.runtime import running
from earwitness.settings import (
    DEFAULT_SYSTEM_PROMPT,
    AudioSettings,
    BuildSettings,
    EngineSettings,
    InputSettings,
    LayoutSettings,
    SamplingSettings,
)
from flows.build_shard import build_shard
from tasks.plan import PlannedBuild, plan
from tasks.publish import publish

_ENGINE, _SAMPLING, _AUDIO = EngineSettings(), SamplingSettings(), AudioSettings()
_INPUT, _LAYOUT = InputSettings(), LayoutSettings()


@flow(name="build-dataset", retries=0, persist_result=False)
def build_dataset(
    manifest: str,
    output: str,
    *,
    model: str | None = None,
    question: str | None = None,
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    max_tokens: int = 256,
    max_rejected: float = 0.5,
    build: str | None = None,
    engine: EngineSettings = _ENGINE,
    sampling: SamplingSettings = _SAMPLING,
    audio: AudioSettings = _AUDIO,
    input: InputSettings = _INPUT,  # noqa: A002 - the setting's name everywhere
    layout: LayoutSettings = _LAYOUT,
) -> dict[str, Any]:
    """Answer every record of a manifest and publish the dataset.

    Args:
        manifest: Path or URL of the manifest: JSONL (.gz, .zst) or Parquet.
        output: Folder or URL the dataset is published under.
        model: Local folder, hub id, or the name a given engine serves.
        question: Asks records that bring audio alone: a text, @FILE, caption or transcribe.
        system_prompt: Leads every conversation that brings none of its own.
        max_tokens: Longest answer, in tokens.
        max_rejected: Publish only if at most this share of the rows is rejected.
        build: Id of the build to make or continue. Default: made from the scheduled start.
        engine: The engine: its addresses, or how vLLM is started.
        sampling: How answers are sampled.
        audio: Limits and policies for clips.
        input: How to read the manifest.
        layout: How the build is cut up and written.

    Returns:
        The build's ledger.
    """
    settings = BuildSettings(**locals())
    planned = plan(settings)
    with running(planned.settings, planned.model):
        build_shards(planned)
        return publish.submit(planned.uri).result()


def build_shards(planned: PlannedBuild) -> None:
    """Do the shards that are left, one after the other.

    A shard whose storage is down does not keep the others from being done; what concerns them
    all (the engine, the credentials) ends the run.

    Args:
        planned: The build, and which of its shards have no receipt.

    Raises:
        ShardFailedError: Some shards failed; the others are done.
    """
    failures: list[str] = []
    for shard in planned.shards:
        try:
            build_shard(planned.uri, shard)
        except (ShardFailedError, StorageUnavailableError) as error:
            failures.append(f"shard {shard}: {error}")
    if failures:
        left = f" (and {len(failures) - 1} more shards)" if len(failures) > 1 else ""
        raise ShardFailedError(f"{failures[0]}{left}")
