"""Shards as flow runs of their own on a worker pool: started once, watched, restarted, cancelled.

Every shard has one flow run for good, found again by the build's tag, or by its idempotency key
when two parents create it at once. A retry sets that run back to scheduled, so that whoever
retries (a person in the UI, a parent, the command line) goes on with the same one.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Failed, Pending, Scheduled

from earwitness.builds.layout import Build
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State
    from prefect.client.schemas.responses import DeploymentResponse

SHARD_POOL = "gpu"
"""The work pool that `prefect.yaml` deploys shards to."""
SHARD_DEPLOYMENT = f"build-shard/{SHARD_POOL}"
"""Where the shards of a build go that itself runs as a deployment."""

_PAGE = 200
_LOOK_S = 15.0
"""The work pool and its workers are not looked at more often."""


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
        message = "It was cancelled; a retry continues its build."
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
        self._name = deployment
        self._client = get_client(sync_client=True)
        self._deployment = self._read_deployment()
        self._looked_s, self._why = -_LOOK_S, ""

    def _read_deployment(self) -> DeploymentResponse:
        try:
            return self._client.read_deployment_by_name(self._name)
        except ObjectNotFound:
            raise SettingsError(
                f"there is no deployment {self._name} at {self._client.api_url}: create it with "
                "`prefect deploy --all`, or set PREFECT_API_URL to another server"
            ) from None

    def _check_pool(self) -> None:
        """Read the deployment again: it, or its work pool, may have been deleted meanwhile."""
        self._deployment = self._read_deployment()
        if self._deployment.work_pool_name is None:
            pool = f"{SHARD_POOL!r} " if self._name == SHARD_DEPLOYMENT else ""
            raise SettingsError(
                f"the work pool {pool}of the deployment {self._name} was deleted from "
                f"{self._client.api_url}: create it with `python -m deployments.setup`, then run "
                "`prefect deploy --all`"
            )

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
        """Have a worker do a shard; the same run, however often it is asked for.

        Args:
            shard: The shard's number.

        Returns:
            Its run.

        Raises:
            SettingsError: The deployment or its work pool was deleted meanwhile.
        """
        self._check_pool()
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

    def restart(self, run: FlowRun) -> FlowRun:
        """Set a run that ended back to scheduled; a worker takes it up again.

        Args:
            run: The run.

        Returns:
            The run; a new one in its place if somebody deleted it.
        """
        again: State[Any] = Scheduled(name="AwaitingRetry", message="The build is continued.")
        # done once and undone since (its receipt is gone): only force takes it back
        done = run.state is not None and run.state.is_completed()
        try:
            take_over(self._client, run)
            self._client.set_flow_run_state(run.id, again, force=done)
        except ObjectNotFound:
            return self.start(int(run.parameters["shard"]))
        return run

    def why_waiting(self, run: FlowRun) -> str:
        """Why a run does not start, as far as the server knows.

        A run whose work pool was deleted and made again is on no queue, where no worker finds it:
        it is deleted, for another one to be started in its place.

        Args:
            run: A run that is scheduled or pending.

        Returns:
            The reason, with what to do.
        """
        if run.state is not None and run.state.is_pending():
            return "a worker has taken its run, but has not started it yet"
        # what was read a while ago may be older than what happened to the run
        on_no_queue = run.work_queue_id is None and self._deployment.work_queue_id is not None
        if on_no_queue or time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s, self._why = time.monotonic(), self._look()
        if run.work_queue_id is None and self._deployment.work_queue_id is not None:
            with suppress(ObjectNotFound):
                self._client.delete_flow_run(run.id)
            return "its work pool was deleted and created again; a new run will be started"
        return self._why

    def _look(self) -> str:
        try:
            self._check_pool()
            pool = str(self._deployment.work_pool_name)
            found = self._client.read_work_pool(pool)
            workers = self._client.read_workers_for_work_pool(pool)
        except SettingsError as error:
            return str(error)
        except ObjectNotFound:
            return "its work pool was deleted"
        if found.is_paused:
            return f"the work pool {pool!r} is paused: resume it in the UI"
        if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
            return (
                f"no worker of the work pool {pool!r} is online: "
                f"start one with `earwitness worker --pool {pool}`"
            )
        return f"the workers of the work pool {pool!r} are busy, or its limit is reached"

    def cancel(self) -> None:
        """Cancel every run that has not ended."""
        for run in self.found().values():
            if run.state is not None and not run.state.is_final():
                state: State[Any] = Cancelling(message="The run of its build was cancelled.")
                # one that somebody deletes meanwhile needs no cancelling
                with suppress(ObjectNotFound):
                    self._client.set_flow_run_state(run.id, state)

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
