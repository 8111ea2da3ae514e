"""An unfinished build goes on: only what failed runs again, and it is published when whole."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from earwitness.settings import EngineSettings
from flows.build_dataset import Text  # noqa: TC001 - Prefect reads it
from flows.cancelling import cancel_shards
from flows.finish import finish_build
from tasks.plan import take_up

_ENGINE = EngineSettings()


def _run_name() -> str:
    given: dict[str, Any] = flow_run.parameters
    return f"retry of {given.get('build') or 'the newest unpublished build'}"


@flow(
    name="retry-failed-shards",
    flow_run_name=_run_name,
    on_cancellation=[cancel_shards],
    retries=0,
    persist_result=False,
    result_serializer="json",
)
def retry_failed_shards(
    output: str,
    build: Text = "",
    *,
    max_rejected: Annotated[float, Field(ge=0, le=1)] | None = None,
    engine: EngineSettings = _ENGINE,
) -> dict[str, Any]:
    """Continue a build that was not published: run what failed, keep what is done, publish.

    Args:
        output: Folder or URL the build is published under.
        build: Id of the build. Default: the newest unpublished one.
        max_rejected: Publish if at most this share of the rows is rejected. Default: as it was.
        engine: How vLLM is started, or where it is, when shards are not answered on a pool.

    Returns:
        The build's ledger.
    """
    return finish_build(take_up(output, build or None, max_rejected, engine))
