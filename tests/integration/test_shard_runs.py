"""A build's shards as flow runs on a pool: each started once, watched, revived, found again.

The worker is played: a thread that takes scheduled runs up and ends them as the test says, writing
real receipts. Real workers are in the end-to-end tests.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
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
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from earwitness.build.batch import Decided, write_segment
from earwitness.build.layout import Build, receipt_path, work_path
from earwitness.build.persist import persist_shard
from earwitness.build.plan import plan_build
from earwitness.build.prepare import resolve_settings
from earwitness.errors import SettingsError, ShardFailedError
from earwitness.identity import ModelIdentity
from earwitness.records import Answer, HeardClip, Outcome
from earwitness.settings import BuildSettings
from flows.attempt import answer_on_pool
from flows.shard_runs import ShardRuns, build_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from prefect.client.schemas.objects import FlowRun

DEPLOYMENT = "build-shard/played"
LIMIT_S = 240


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
    write_segment(build, f"{work_path(shard)}/resolved.parquet", [], [])
    write_segment(build, f"{work_path(shard)}/batch-00000-0.parquet", decided, [])
    persist_shard(build, shard)


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
            return client.read_flow_runs(flow_run_filter=wanted)

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
            if end is Completed:
                do(self.build, shard)
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


@contextmanager
def fails(shards: int) -> Iterator[pytest.ExceptionInfo[ShardFailedError]]:
    with pytest.raises(ShardFailedError, match=f"{shards} of 4 shards are not done") as caught:
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
        runs.revive(runs.found()[0])
        states = {run: client.read_flow_run(run).state for run in (parent.id, child.id)}
    assert (states[parent.id].type, states[parent.id].name) == (StateType.FAILED, "TakenOver")
    assert states[child.id].name == "AwaitingRetry"


def test_a_missing_deployment_is_named_with_what_makes_it(build: Build, deployment: str):  # noqa: ARG001 - another one is there
    with pytest.raises(SettingsError, match=r"build-shard/nowhere.*prefect deploy --all"):
        answer_on_pool(build, [0], "build-shard/nowhere", at_once=1)
