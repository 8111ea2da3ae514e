"""Cancelling the run of a build also cancels the runs of its shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from earwitness.addresses import absolute_uri
from earwitness.builds.choose import build_of_run
from earwitness.builds.layout import Build
from earwitness.builds.retry import unpublished_build
from flows.names import build_of
from flows.shard_runs import SHARD_DEPLOYMENT, ShardRuns

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State


def cancel_shards(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Cancel the shards' runs of the build that a cancelled run was about.

    Prefect's server does so itself, some time later, for runs that were started by this one; a
    retry goes on with runs that another one started.

    Args:
        flow: Which flow; `build-dataset` runs bear the build's id.
        flow_run: The cancelled run.
        state: Its state.
    """
    del state
    given = flow_run.parameters
    output = absolute_uri(given["output"])
    building = flow.name == "build-dataset"
    name = build_of(flow_run.name) if building else _retried(output, flow_run)
    if name is not None:
        deployment = (given.get("engine") or {}).get("shards_on") or SHARD_DEPLOYMENT
        ShardRuns(Build(output, name).uri, deployment).cancel()


def _retried(output: str, run: FlowRun) -> str | None:
    """The build that a run of `retry-failed-shards` is about; None: it has made none yet."""
    given, started = run.parameters, run.expected_start_time
    if not given.get("reason"):
        return given.get("build") or unpublished_build(output).id
    made = build_of_run(output, started, str(run.id)) if started else None
    return made.id if made else None
