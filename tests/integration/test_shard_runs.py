"""A build's shards as flow runs on a pool: each started once, watched, restarted, found again.

The worker is played: a thread that takes scheduled runs up and ends them as the test says, writing
real receipts. Real workers are in the end-to-end tests.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import pytest
from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from earwitness.builds.batch import Decided, write_resolved, write_segment
from earwitness.builds.layout import Build, receipt_path, work_path
from earwitness.builds.persist import persist_shard
from earwitness.builds.plan import plan_build
from earwitness.builds.prepare import resolve_settings
from earwitness.errors import SettingsError, ShardFailedError
from earwitness.identity import ModelIdentity
from earwitness.records import Answer, HeardClip, Outcome
from earwitness.settings import BuildSettings
from flows.attempt import Attempt, answer_on_pool
from flows.shard_runs import ShardRuns, build_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun

DEPLOYMENT = "build-shard/played"
ENDS_S = 60


@pytest.fixture(scope="module")
def deployment(prefect_server: str) -> str:  # noqa: ARG001 - it is asked
    from flows.build_shard import build_shard

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="played", type="process"))
        flow = client.create_flow(build_shard)
        return str(client.create_deployment(flow, name="played", work_pool_name="played"))


@pytest.fixture
def build(tmp_path: Path, request: pytest.FixtureRequest) -> Build:
    asked = [{"from": "human", "value": "What?"}]
    lines = [json.dumps({"audio": ["x.wav"], "conversation": asked}) for _ in range(8)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    settings = BuildSettings(
        manifest=str(tmp_path / "m.jsonl"), output=str(tmp_path), layout={"shard_rows": 2}
    )
    made = Build(str(tmp_path), f"b-{abs(hash(request.node.name)):x}")
    model = ModelIdentity("declared", "stand-in", "")
    plan_build(made, resolve_settings(settings), model, datetime.now(tz=UTC))
    return made


def do(build: Build, shard: int) -> None:
    rows = range(2 * shard, 2 * shard + 2)
    heard, said = (HeardClip("a" * 64, 1.0, 1.0),), Answer("so", "stop", 1, 1)
    decided = [
        Decided(row, Outcome(f"{row:064x}", said, None, heard, 256), reused=False) for row in rows
    ]
    write_resolved(build, shard, [])
    write_segment(build, f"{work_path(shard)}/batch-00000-0.parquet", decided, [])
    persist_shard(build, shard)


class Deleted(Enum):
    """Somebody deletes a run: before its shard is done, or after."""

    BEFORE = auto()
    AFTER = auto()


class Played:
    """A played worker: takes runs up in order, and ends each as `behave` says."""

    def __init__(self, build: Build, deployment: str, behave: Callable[[int, int], Any]) -> None:
        self.build, self.behave = build, behave
        self.taken: list[int] = []
        self.most_at_once = 0
        self._deployment = deployment
        self._stop = threading.Event()

    def waiting(self) -> list[FlowRun]:
        wanted = FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[self._deployment]),
            tags=FlowRunFilterTags(all_=[build_tag(self.build.uri)]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        )
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=wanted)
        # a worker finds runs by their queue; a deleted work pool takes its queues with it
        return [run for run in found if run.work_queue_id is not None]

    def _work(self) -> None:
        while not self._stop.is_set():
            runs = self.waiting()
            self.most_at_once = max(self.most_at_once, len(runs))
            for run in sorted(runs, key=lambda one: one.parameters["shard"]):
                self._take(run)
            time.sleep(0.05)

    def _take(self, run: FlowRun) -> None:
        shard = run.parameters["shard"]
        end = self.behave(shard, self.taken.count(shard))
        self.taken.append(shard)
        with get_client(sync_client=True) as client:
            for state in (Pending(), Running()):
                client.set_flow_run_state(run.id, state)
            if end in {Completed, Deleted.AFTER}:
                do(self.build, shard)
            if isinstance(end, Deleted):
                client.delete_flow_run(run.id)
                return
            client.set_flow_run_state(
                run.id, end(message=f"ended in try {self.taken.count(shard)}")
            )

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def always(state: Any) -> Callable[[int, int], Any]:
    return lambda _shard, _before: state


def answer(build: Build, at_once: int = 8) -> None:
    answer_on_pool(build, build.missing_shards(), DEPLOYMENT, at_once=at_once)


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + ENDS_S
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.1)


@contextmanager
def fails(shards: int) -> Iterator[pytest.ExceptionInfo[ShardFailedError]]:
    with pytest.raises(ShardFailedError, match=f"{shards} of 4 shards not done") as caught:
        yield caught


def test_every_shard_is_handed_out_once_and_waited_for(build: Build, deployment: str):
    with Played(build, deployment, always(Completed)) as worker:
        answer(build)
    assert (sorted(worker.taken), build.missing_shards()) == ([0, 1, 2, 3], [])


def test_no_more_shards_than_allowed_are_on_the_pool_at_once(build: Build, deployment: str):
    with Played(build, deployment, always(Completed)) as worker:
        answer(build, at_once=2)
    assert worker.most_at_once <= 2
    assert build.missing_shards() == []


def test_one_failed_shard_does_not_keep_the_others_from_being_done(build: Build, deployment: str):
    def second_fails(shard: int, _before: int) -> Any:
        return Failed if shard == 1 else Completed

    with Played(build, deployment, second_fails), fails(1) as caught:
        answer(build)
    assert build.missing_shards() == [1]
    assert "shard 1 (http" in str(caught.value)
    assert "ended in try 1" in str(caught.value)


def test_the_next_attempt_sets_only_failed_runs_back_and_makes_no_new_ones(
    build: Build, deployment: str
):
    def at_first_second_fails(shard: int, before: int) -> Any:
        return Failed if shard == 1 and not before else Completed

    with Played(build, deployment, at_first_second_fails) as worker:
        with fails(1):
            answer(build)
        runs = ShardRuns(build.uri, DEPLOYMENT).found()
        answer(build)
        again = ShardRuns(build.uri, DEPLOYMENT).found()
    assert sorted(worker.taken) == [0, 1, 1, 2, 3]
    assert {n: run.id for n, run in runs.items()} == {n: run.id for n, run in again.items()}
    assert again[1].state is not None
    assert again[1].state.is_completed()


def test_a_cancelled_shard_is_taken_up_by_the_next_attempt(build: Build, deployment: str):
    def at_first_cancelled(_shard: int, before: int) -> Any:
        return Completed if before else Cancelled

    with Played(build, deployment, at_first_cancelled):
        with fails(4):
            answer(build)
        answer(build)
    assert build.missing_shards() == []


def test_a_shard_that_lost_its_worker_is_given_to_another_in_the_same_attempt(
    build: Build, deployment: str
):
    def at_first_crashes(_shard: int, before: int) -> Any:
        return Completed if before else Crashed

    with Played(build, deployment, at_first_crashes) as worker:
        answer(build)
    assert sorted(worker.taken) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_shard_that_takes_every_worker_with_it_is_given_up(build: Build, deployment: str):
    with Played(build, deployment, always(Crashed)) as worker, fails(4):
        answer(build, at_once=1)
    assert worker.taken.count(0) == 3


def test_a_parent_that_comes_back_waits_for_the_runs_that_are_under_way(
    build: Build, deployment: str
):
    for shard in range(4):
        ShardRuns(build.uri, DEPLOYMENT).start(shard)
    with Played(build, deployment, always(Completed)) as worker:
        answer(build)
    assert sorted(worker.taken) == [0, 1, 2, 3]


def test_two_parents_at_once_share_the_same_runs(build: Build, deployment: str):
    runs = [ShardRuns(build.uri, DEPLOYMENT).start(2).id for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(Played(build, deployment, always(Completed)).waiting()) == 1


def test_a_shard_that_a_person_retried_meanwhile_counts_as_done(build: Build, deployment: str):
    def done_elsewhere(shard: int, _before: int) -> Any:
        if shard == 3:
            do(build, 1)
        return Failed if shard == 1 else Completed

    with Played(build, deployment, done_elsewhere):
        answer(build)
    assert build.missing_shards() == []


def test_a_shard_whose_receipt_is_gone_is_done_again_though_its_run_completed(
    build: Build, deployment: str
):
    with Played(build, deployment, always(Completed)) as worker:
        answer(build)
        build.store.delete([receipt_path(2)])
        answer(build)
    assert sorted(worker.taken) == [0, 1, 2, 2, 3]


def test_cancelling_ends_what_has_not_ended(build: Build, deployment: str):  # noqa: ARG001 - it must be there
    runs = ShardRuns(build.uri, DEPLOYMENT)
    started = [runs.start(shard) for shard in (0, 1)]
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(started[0].id, Completed(), force=True)
    runs.cancel()
    states = {run.parameters["shard"]: run.state for run in runs.states([r.id for r in started])}
    assert states[0].is_completed()
    assert states[1].type in {StateType.CANCELLING, StateType.CANCELLED}


def test_a_shard_taken_up_again_is_not_cancelled_because_its_parent_once_was(
    build: Build, deployment: str
):
    from flows.build_dataset import build_dataset

    with get_client(sync_client=True) as client:
        parent = client.create_flow_run(build_dataset, parameters={"manifest": "m", "output": "o"})
        place = client.create_task_run(
            Task(name="shard", fn=do), flow_run_id=parent.id, dynamic_key="0", state=Pending()
        )
        child = client.create_flow_run_from_deployment(
            UUID(deployment),
            parameters={"build": build.uri, "shard": 0},
            tags=[build_tag(build.uri)],
            parent_task_run_id=place.id,
        )
        for run in (parent, child):
            client.set_flow_run_state(run.id, Cancelled(), force=True)
        runs = ShardRuns(build.uri, DEPLOYMENT)
        runs.restart(runs.found()[0])
        states = {run: client.read_flow_run(run).state for run in (parent.id, child.id)}
    assert (states[parent.id].type, states[parent.id].name) == (StateType.FAILED, "TakenOver")
    assert states[child.id].name == "AwaitingRetry"


@pytest.mark.parametrize("when", Deleted)
def test_a_run_that_somebody_deletes_is_started_anew_unless_its_shard_is_done(
    build: Build, deployment: str, when: Deleted
):
    def first_is_deleted(shard: int, before: int) -> Any:
        return when if shard == 1 and not before else Completed

    with Played(build, deployment, first_is_deleted) as worker:
        thread = threading.Thread(target=copy_context().run, args=(answer, build), daemon=True)
        thread.start()
        thread.join(ENDS_S)
    assert not thread.is_alive()
    assert build.missing_shards() == []
    assert worker.taken.count(1) == (2 if when is Deleted.BEFORE else 1)


def test_a_run_deleted_just_before_it_is_set_back_is_started_anew(build: Build, deployment: str):  # noqa: ARG001 - it must be there
    runs = ShardRuns(build.uri, DEPLOYMENT)
    run = runs.start(0)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Failed(), force=True)
        client.delete_flow_run(run.id)
    again = runs.restart(run)
    assert again.id != run.id
    assert again.parameters["shard"] == 0


def test_a_run_that_a_person_cancels_fails_its_shard_and_that_is_said(
    build: Build, deployment: str
):
    with Played(build, deployment, always(Cancelled)), fails(4) as caught:
        answer(build)
    assert "its run was cancelled" in str(caught.value)


@pytest.fixture
def own_pool(prefect_server: str, request: pytest.FixtureRequest) -> Iterator[str]:  # noqa: ARG001 - it is asked
    """A work pool, and a deployment `build-shard/<its name>` to it."""
    from flows.build_shard import build_shard

    name = f"own-{abs(hash(request.node.name)):x}"
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        client.create_deployment(client.create_flow(build_shard), name=name, work_pool_name=name)
    yield name
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        client.delete_work_pool(name)


def waits(build: Build, pool: str) -> Attempt:
    """An attempt that explains at once why a run does not start."""
    runs = ShardRuns(build.uri, f"build-shard/{pool}")
    return Attempt(build, [0, 1, 2, 3], runs=runs, at_once=8, patience_s=0)


def test_runs_that_no_worker_takes_are_explained_and_waited_for(
    build: Build, own_pool: str, caplog: pytest.LogCaptureFixture
):
    runs = ShardRuns(build.uri, f"build-shard/{own_pool}")
    attempt = waits(build, own_pool)
    thread = threading.Thread(target=copy_context().run, args=(attempt.run,), daemon=True)
    thread.start()
    until(lambda: "no worker of the work pool" in caplog.text)
    assert f"start one with `earwitness worker --pool {own_pool}`" in caplog.text
    assert thread.is_alive()
    assert {line["message"] for line in attempt._table._lines.values() if line["message"]}
    with Played(build, str(runs._deployment.id), always(Completed)):
        thread.join(ENDS_S)
    assert not thread.is_alive()
    assert build.missing_shards() == []


def test_a_deleted_work_pool_is_named_where_a_shard_is_to_be_started(build: Build, own_pool: str):
    with get_client(sync_client=True) as client:
        client.delete_work_pool(own_pool)
    with pytest.raises(SettingsError) as caught:
        answer_on_pool(build, [0], f"build-shard/{own_pool}", at_once=1)
    assert f"of the deployment build-shard/{own_pool} was deleted" in str(caught.value)
    assert "create it with `python -m deployments.setup`" in str(caught.value)


def test_a_run_whose_work_pool_was_deleted_a_moment_ago_is_kept(build: Build, own_pool: str):
    runs = ShardRuns(build.uri, f"build-shard/{own_pool}")
    run = runs.start(0)
    runs.why_waiting(run)
    with get_client(sync_client=True) as client:
        client.delete_work_pool(own_pool)
    (found,) = runs.states([run.id])
    assert f"of the deployment build-shard/{own_pool} was deleted" in runs.why_waiting(found)
    assert runs.states([run.id])


def test_runs_whose_work_pool_was_deleted_and_made_again_are_started_anew(
    build: Build, own_pool: str, caplog: pytest.LogCaptureFixture
):
    from flows.build_shard import build_shard

    attempt = waits(build, own_pool)
    thread = threading.Thread(target=copy_context().run, args=(attempt.run,), daemon=True)
    thread.start()
    until(lambda: len(ShardRuns(build.uri, f"build-shard/{own_pool}").found()) == 4)
    with get_client(sync_client=True) as client:
        client.delete_work_pool(own_pool)
        until(lambda: "was deleted" in caplog.text)
        client.create_work_pool(WorkPoolCreate(name=own_pool, type="process"))
        flow = client.create_flow(build_shard)
        deployment = client.create_deployment(flow, name=own_pool, work_pool_name=own_pool)
        until(lambda: "its work pool was deleted and created again" in caplog.text)
    with Played(build, str(deployment), always(Completed)):
        thread.join(ENDS_S)
    assert not thread.is_alive()
    assert build.missing_shards() == []


def test_a_deployment_deleted_while_its_shards_wait_is_named(build: Build, own_pool: str):
    attempt = waits(build, own_pool)
    runs = ShardRuns(build.uri, f"build-shard/{own_pool}")
    told: list[str] = []

    def run() -> None:
        with pytest.raises(SettingsError) as caught:
            attempt.run()
        told.append(str(caught.value))

    thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
    thread.start()
    until(lambda: len(runs.found()) == 4)
    with get_client(sync_client=True) as client:
        client.delete_deployment(runs._deployment.id)
    thread.join(ENDS_S)
    assert f"there is no deployment build-shard/{own_pool}" in told[0]


def test_a_missing_deployment_is_named_with_what_makes_it(build: Build, deployment: str):  # noqa: ARG001 - another one is there
    with pytest.raises(SettingsError, match=r"build-shard/nowhere.*prefect deploy --all"):
        answer_on_pool(build, [0], "build-shard/nowhere", at_once=1)
