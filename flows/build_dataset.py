"""A manifest in, a published dataset out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field, ValidationError

from earwitness.addresses import absolute_uri
from earwitness.builds.absolute import check_absolute
from earwitness.builds.choose import run_build_id
from earwitness.builds.prepare import build_name
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
from flows.form import Defaults, Text, shape_form
from flows.names import run_name
from flows.shard_runs import deployed_run
from tasks.plan import plan
from tasks.telling import plainly


def _run_name() -> str:
    """The build's id, beside the name that a person gave the run."""
    given: dict[str, Any] = flow_run.parameters
    started = flow_run.scheduled_start_time or datetime.now(tz=UTC)
    try:
        layout = LayoutSettings.model_validate(given.get("layout") or {})
        name = build_name(absolute_uri(given["output"]), layout)
        build = run_build_id(given.get("build"), name, started, flow_run.id or "")
    except (ValueError, SettingsError):  # said where it can be read: by the flow and its plan
        return str(flow_run.name)
    return run_name(build, str(flow_run.name))


@flow(
    name="build-dataset",
    flow_run_name=_run_name,
    on_cancellation=[cancel_shards],
    retries=0,
    persist_result=False,
    result_serializer="json",
)
@plainly
def build_dataset(
    manifest: str,
    output: str,
    *,
    model: Text = "",
    question: Text = "",
    max_tokens: Annotated[int, Field(ge=1)] = 256,
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.5,
    system_prompt: str = DEFAULT_SYSTEM_PROMPT,
    build: Text = "",
    sampling: SamplingSettings | Defaults = None,
    audio: AudioSettings | Defaults = None,
    input: InputSettings | Defaults = None,  # noqa: A002 - the setting's name everywhere
    layout: LayoutSettings | Defaults = None,
    engine: EngineSettings | Defaults = None,
) -> dict[str, Any]:
    """Build a dataset: ask a model about every record of a manifest and publish the answers.

    A run reads and checks the manifest, divides it into shards, starts a run on the GPU pool for
    each shard, and publishes the dataset when every shard is done. Answers of earlier builds of the
    same output are reused.

    Args:
        manifest: The records to ask about: path or URL of a JSONL (.gz, .zst) or Parquet file.
            A path has to be absolute, because workers do not share your working folder.
        output: Where the dataset is published: absolute path or URL of a folder.
        model: The audio model: absolute path of its folder, or its id on the Hugging Face hub. The
            workers of the GPU pool must serve the same one.
        question: What is asked about records that have audio and no conversation: a text, the
            absolute path of a text file after @, or one of the words caption and transcribe.
        max_tokens: Longest answer, in tokens. Longer answers are cut to this length and kept.
        max_rejected: The dataset is published if at most this share of its rows is rejected (0.5 is
            one half).
        system_prompt: System prompt of every conversation that has none. Empty for no prompt.
        build: Id of a build to continue, or of a new build. Leave it empty for a new build with an
            id made of the output's name and the time.
        sampling: How answers are sampled (temperature, top_p, top_k, repetition penalty, seed).
        audio: Which clips are accepted (length, silence, size).
        input: How the manifest is read (columns, folder of the clips, where clips may be).
        layout: How the dataset is written (name, formats, columns, rows of a shard).
        engine: Engine settings. On a work pool the workers' own settings are used.

    Returns:
        The build's ledger.
    """
    given: dict[str, Any] = {
        **locals(),
        "model": model or None,
        "question": question or None,
        "build": build or None,
    }
    settings = _settings({name: one for name, one in given.items() if one is not None})
    if deployed_run():
        check_absolute(settings)
    return finish_build(plan.submit(settings).result())


def _settings(given: dict[str, Any]) -> BuildSettings:
    try:
        return BuildSettings(**given)
    except ValidationError as error:
        faults = [one["msg"].removeprefix("Value error, ") for one in error.errors()]
        raise SettingsError("; ".join(faults)) from error


shape_form(build_dataset, hidden={"engine"}, required={"model"})
