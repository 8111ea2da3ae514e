"""Shards as flow runs of their own on a worker pool: started once, watched, revived, cancelled.

Every shard has one flow run for good, found again by the build's tag, or by its idempotency key
when two parents create it at once. A retry sets that run back to scheduled, so that whoever
retries (a person in the UI, a parent, the command line) goes on with the same one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterTags,
)
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Failed, Pending, Scheduled

from earwitness.build.layout import Build
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

SHARD_DEPLOYMENT = "build-shard/gpu"
"""Where the shards of a build go that itself runs as a deployment."""

_PAGE = 200


def shard_run_name(build: str, shard: int) -> str:
    """What a shard's run is called: `shard-00012 of <build id>`."""
    return f"shard-{shard:05d} of {Build.at(build).id}"


def build_tag(build: str) -> str:
    """The tag all runs of a build's shards bear."""
    return f"build:{Build.at(build).id}"


def deployed_run() -> FlowRun | None:
    """The current flow run, if a worker runs it from a deployment."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run if run and run.deployment_id else None


def parent_lives(run: FlowRun) -> bool:
    """True for a shard's run whose parent's run has not ended: it will publish."""
    with get_client(sync_client=True) as client:
        parent = _parent(client, run)
    return bool(parent and parent.state and not parent.state.is_final())


def _parent(client: SyncPrefectClient, run: FlowRun) -> FlowRun | None:
    """The run of the build that started a shard's run, while the server knows it."""
    if run.parent_task_run_id is None:
        return None
    try:
        parent = client.read_task_run(run.parent_task_run_id).flow_run_id
        return client.read_flow_run(parent) if parent else None
    except ObjectNotFound:
        return None


def take_over(client: SyncPrefectClient, run: FlowRun) -> None:
    """Keep a shard's run from being cancelled again because its parent once was.

    For a day Prefect's server cancels whatever goes on below a cancelled run, also what somebody
    retries. So that parent's state says from now on that its build goes on without it.

    Args:
        client: Speaks to the server.
        run: The shard's run.
    """
    parent = _parent(client, run)
    if parent and parent.state and parent.state.is_cancelled():
        message = "It was cancelled; a retry goes on with its build."
        client.set_flow_run_state(parent.id, Failed(name="TakenOver", message=message), force=True)


def free_from_cancelled_parent(run: FlowRun) -> None:
    """Let a shard's run live that a person retried after its build was cancelled."""
    with get_client(sync_client=True) as client:
        take_over(client, run)


class ShardRuns:
    """The flow runs of one build's shards, behind Prefect's API.

    Args:
        build: Address of the build.
        deployment: The deployment its shards run as, `flow/deployment`.

    Raises:
        SettingsError: There is no such deployment.
    """

    def __init__(self, build: str, deployment: str) -> None:
        self.build = build
        self._client = get_client(sync_client=True)
        try:
            self._deployment = self._client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise SettingsError(
                f"there is no deployment {deployment} at {self._client.api_url}; "
                "`prefect deploy --all` makes it, and PREFECT_API_URL says which server is asked"
            ) from None

    def found(self) -> dict[int, FlowRun]:
        """The runs there are, by shard."""
        runs: dict[int, FlowRun] = {}
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[self._deployment.id]),
            tags=FlowRunFilterTags(all_=[build_tag(self.build)]),
        )
        for run in self._pages(wanted):
            if run.parameters.get("build") == self.build:
                runs.setdefault(int(run.parameters["shard"]), run)
        return runs

    def states(self, runs: Iterable[UUID]) -> list[FlowRun]:
        """Some runs as they are now."""
        wanted = list(runs)
        found: list[FlowRun] = []
        for start in range(0, len(wanted), _PAGE):
            ids = FlowRunFilterId(any_=wanted[start : start + _PAGE])
            found += self._client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids))
        return found

    def start(self, shard: int) -> FlowRun:
        """Have a worker do a shard; the same run, however often it is asked for."""
        context = FlowRunContext.get()
        parent = context.flow_run if context else None
        key = hashlib.sha256(f"{self.build} {shard}".encode()).hexdigest()[:32]
        return self._client.create_flow_run_from_deployment(
            self._deployment.id,
            parameters={"build": self.build, "shard": shard},
            name=shard_run_name(self.build, shard),
            tags=[build_tag(self.build)],
            idempotency_key=key,
            state=Scheduled(),
            parent_task_run_id=self._place(parent, shard) if parent else None,
            # nights wait for people on the shards' pool as well
            work_queue_name=parent.work_queue_name if parent else None,
        )

    def _place(self, parent: FlowRun, shard: int) -> UUID:
        """Where the shard's run shows in its parent: a task run of its own, the same on retries."""
        task = Task(name=f"shard-{shard:05d}", fn=_nothing)
        placed = self._client.create_task_run(
            task=task, flow_run_id=parent.id, dynamic_key=str(shard), state=Pending()
        )
        return placed.id

    def revive(self, run: FlowRun) -> None:
        """Set a run that ended back to scheduled; a worker takes it up again."""
        take_over(self._client, run)
        again: State[Any] = Scheduled(name="AwaitingRetry", message="The build is continued.")
        # done once and undone since (its receipt is gone): only force takes it back
        done = run.state is not None and run.state.is_completed()
        self._client.set_flow_run_state(run.id, again, force=done)

    def cancel(self) -> None:
        """Cancel every run that has not ended."""
        for run in self.found().values():
            if run.state is not None and not run.state.is_final():
                self._client.set_flow_run_state(run.id, Cancelling(message="The build was."))

    def _pages(self, wanted: FlowRunFilter) -> Iterable[FlowRun]:
        offset = 0
        while True:
            page = self._client.read_flow_runs(
                flow_run_filter=wanted,
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=_PAGE,
                offset=offset,
            )
            yield from page
            if len(page) < _PAGE:
                return
            offset += _PAGE


def _nothing() -> None:
    """Stands for a shard in its parent's graph; the work is the shard's own run."""
