"""A manifest in, a published dataset out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from earwitness.addresses import absolute_uri
from earwitness.build.choose import run_build_id
from earwitness.build.prepare import build_name
from earwitness.errors import SettingsError
from earwitness.settings import (
    DEFAULT_SYSTEM_PROMPT,
    AudioSettings,
    BuildSettings,
    EngineSettings,
    InputSettings,
    LayoutSettings,
    SamplingSettings,
)
from flows.cancelling import cancel_shards
from flows.finish import finish_build
from tasks.plan import plan

_ENGINE, _SAMPLING, _AUDIO = EngineSettings(), SamplingSettings(), AudioSettings()
_INPUT, _LAYOUT = InputSettings(), LayoutSettings()


Text = str | SkipJsonSchema[None]
"""An optional text: a plain box in the UI's form, where an empty one means that nothing is said."""


def _run_name() -> str:
    """A build's run bears the build's id."""
    given: dict[str, Any] = flow_run.parameters
    started = flow_run.scheduled_start_time or datetime.now(tz=UTC)
    try:
        layout = LayoutSettings.model_validate(given.get("layout", {}))
        name = build_name(absolute_uri(given["output"]), layout)
        return run_build_id(given.get("build"), name, started, flow_run.id or "")
    except (ValueError, SettingsError):  # said where it can be read: by the flow and its plan
        return str(flow_run.name)


@flow(
    name="build-dataset",
    flow_run_name=_run_name,
    on_cancellation=[cancel_shards],
    retries=0,
    persist_result=False,
    result_serializer="json",
)
def build_dataset(
    manifest: str,
    output: str,
    *,
    model: Text = "",
    question: Text = "",
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    max_tokens: Annotated[int, Field(ge=1)] = 256,
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.5,
    build: Text = "",
    sampling: SamplingSettings = _SAMPLING,
    audio: AudioSettings = _AUDIO,
    input: InputSettings = _INPUT,  # noqa: A002 - the setting's name everywhere
    layout: LayoutSettings = _LAYOUT,
    engine: EngineSettings = _ENGINE,
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
        sampling: How answers are sampled.
        audio: Limits and policies for clips.
        input: How to read the manifest.
        layout: How the build is cut up and written.
        engine: The engine: its addresses, or how vLLM is started. On a pool its worker decides.

    Returns:
        The build's ledger.
    """
    given: dict[str, Any] = {
        **locals(),
        "model": model or None,
        "question": question or None,
        "build": build or None,
    }
    return finish_build(plan(BuildSettings(**given)))
