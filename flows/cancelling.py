"""Cancelling a build's run cancels the runs of its shards: no engine works for nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from earwitness.addresses import absolute_uri
from earwitness.build.layout import Build
from earwitness.build.retry import unpublished_build
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
    if flow.name == "build-dataset":
        name = flow_run.name
    else:
        name = given.get("build") or unpublished_build(output).id
    deployment = (given.get("engine") or {}).get("shards_on") or SHARD_DEPLOYMENT
    ShardRuns(Build(output, name).uri, deployment).cancel()
