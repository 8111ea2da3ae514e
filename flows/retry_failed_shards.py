"""Continue an unfinished build, or ask rows again that were rejected for given reasons."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field, WithJsonSchema

from earwitness.builds.absolute import check_absolute_address
from earwitness.builds.retry import ASKABLE
from earwitness.records import Reason
from earwitness.settings import EngineSettings
from flows.cancelling import cancel_shards
from flows.finish import finish_build
from flows.form import Defaults, Text, shape_form
from flows.names import run_name
from flows.shard_runs import deployed_run
from tasks.plan import take_up
from tasks.telling import plainly

Askable = Annotated[Reason, WithJsonSchema({"type": "string", "enum": [*map(str, ASKABLE)]})]
"""A reason that the form offers: those found in the manifest need another manifest."""


def _run_name() -> str:
    given: dict[str, Any] = flow_run.parameters
    which = given.get("build") or "the newest build"
    return run_name(f"retry of {which}", str(flow_run.name))


@flow(
    name="retry-failed-shards",
    flow_run_name=_run_name,
    on_cancellation=[cancel_shards],
    retries=0,
    persist_result=False,
    result_serializer="json",
)
@plainly
def retry_failed_shards(
    output: str,
    build: Text = "",
    *,
    max_rejected: Annotated[float, Field(ge=0, le=1, title="Change")]
    | Annotated[None, Field(title="Unchanged")] = None,
    reason: tuple[Askable, ...] = (),
    engine: EngineSettings | Defaults = None,
) -> dict[str, Any]:
    """Continue a build that is not published, or ask again what was rejected.

    Without a reason: the shards that are not done run again, and then the build is published.
    Finished shards are kept.

    With reasons: a new build over the same rows, in which rows that were rejected for one of these
    reasons are asked again and everything else is reused.

    Args:
        output: Where the dataset is published: absolute path or URL of the folder.
        build: Id of the build. Leave it empty for the newest build that is not published; with a
            reason, for the newest build.
        max_rejected: The dataset is published if at most this share of its rows is rejected.
        reason: Ask again what was rejected for one of these reasons, in a new build. Leave it empty
            to continue the build.
        engine: Engine settings. On a work pool the workers' own settings are used.

    Returns:
        The build's ledger.
    """
    if deployed_run():
        check_absolute_address("output", output)
    settings = engine or EngineSettings()
    taken = take_up.submit(output, build or None, max_rejected, settings, reasons=reason)
    return finish_build(taken.result())


shape_form(retry_failed_shards, hidden={"engine"})
