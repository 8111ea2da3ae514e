"""Runs of deployments, as a person starts them from the form and reads them on their pages.

Prefect's server is real. The worker is played: a thread that runs the shards' flow in this process.
"""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.flow_engine import run_flow
from prefect.states import Scheduled
from prefect.utilities.callables import parameter_schema
from workbench import Published, record, tone, write_clip, write_manifest

from earwitness import settings
from earwitness.builds.choose import build_ids
from earwitness.settings import EngineSettings
from flows.build_dataset import build_dataset
from flows.build_shard import build_shard
from flows.retry_failed_shards import retry_failed_shards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from uuid import UUID

    from prefect.client.schemas.objects import State
    from workbench import StandIn

FLOWS = {"build-dataset": build_dataset, "retry-failed-shards": retry_failed_shards}
SHARD_ROWS, ROWS = 2, 6


@dataclass(frozen=True)
class Deployed:
    """A flow run that has ended."""

    id: UUID
    name: str
    state: State[Any]
    log: tuple[logging.LogRecord, ...]

    @property
    def said(self) -> list[str]:
        return [line.getMessage() for line in self.log]


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record)


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """What goes to the logs of flow runs."""
    handler, logger = _Log(), logging.getLogger("prefect.flow_runs")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture(scope="module")
def deployments(prefect_server: str) -> dict[str, UUID]:
    assert prefect_server
    names = {"build-dataset": "adhoc", "retry-failed-shards": "default", "build-shard": "gpu"}
    flows = {**FLOWS, "build-shard": build_shard}
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="deployed", type="process"))
        return {
            name: client.create_deployment(
                client.create_flow(flow), name=names[name], work_pool_name="deployed"
            )
            for name, flow in flows.items()
        }


@pytest.fixture
def run(deployments: dict[str, UUID]) -> Callable[..., Deployed]:
    """Runs a deployment to its end; a run's id runs that one again, as the button Retry does."""

    def run(name: str, *, again: UUID | None = None, called: str = "", **given: Any) -> Deployed:
        with get_client(sync_client=True) as client:
            if again is None:
                made = client.create_flow_run_from_deployment(
                    deployments[name], parameters=given, name=called or None
                )
            else:
                client.set_flow_run_state(again, Scheduled(name="AwaitingRetry"))
                made = client.read_flow_run(again)
            with logged() as lines:
                run_flow(
                    FLOWS[name], flow_run=made, parameters=made.parameters, return_type="state"
                )
            ended = client.read_flow_run(made.id)
        assert ended.state is not None
        own = tuple(line for line in lines if getattr(line, "flow_run_id", "") == str(made.id))
        return Deployed(ended.id, ended.name, ended.state, own)

    return run


@pytest.fixture
def worker(deployments: dict[str, UUID]) -> Iterator[None]:
    """Takes shards' runs up until the test ends."""
    stop = threading.Event()
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[deployments["build-shard"]]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
    )

    def work() -> None:
        with get_client(sync_client=True) as client:
            while not stop.wait(0.1):
                for one in client.read_flow_runs(flow_run_filter=wanted):
                    run_flow(
                        build_shard,
                        flow_run=one,
                        parameters=one.parameters,
                        return_type="state",
                    )

    thread = threading.Thread(target=copy_context().run, args=(work,), daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    records = []
    for row in range(ROWS):
        write_clip(tmp_path / f"{row}.wav", tone(0.2 + 0.01 * row))
        records.append(record(f"{row}.wav", id=row))
    return write_manifest(tmp_path / "m.jsonl", records)


@pytest.fixture
def given(manifest: Path, tmp_path: Path, stand_in: StandIn) -> dict[str, Any]:
    """What the form sends, and the played worker's engine."""
    return {
        "manifest": str(manifest),
        "output": str(tmp_path / "out"),
        "model": "",
        "layout": {"shard_rows": SHARD_ROWS},
        "engine": {"url": [stand_in.url]},
    }


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a worker gives a run: empty, and deleted with it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def artifact(run: UUID, kind: str) -> str:
    with get_client(sync_client=True) as client:
        (found,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run]),
                type=ArtifactFilterType(any_=[kind]),
            )
        )
    return str(found.data)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("manifest", {"manifest": "m.jsonl"}),
        ("output", {"output": "out"}),
        ("output", {"output": "~/out"}),
        ("question", {"question": "@question.txt"}),
        ("model", {"model": "./model", "engine": None}),
        ("input.audio_root", {"input": {"audio_root": "clips"}}),
    ],
)
def test_a_relative_path_is_refused_by_its_name_and_nothing_is_done(
    run: Callable[..., Deployed],
    given: dict[str, Any],
    working_folder: Path,
    name: str,
    changes: dict[str, Any],
):
    before = sorted(working_folder.parent.rglob("*"))
    ended = run("build-dataset", **{**given, **changes})
    assert ended.state.is_failed()
    assert ended.state.message is not None
    assert ended.state.message.startswith(f"{name}: ")
    assert sorted(working_folder.parent.rglob("*")) == before


def test_a_retry_with_a_relative_output_is_refused(run: Callable[..., Deployed]):
    ended = run("retry-failed-shards", output="out")
    assert ended.state.is_failed()
    assert (ended.state.message or "").startswith("output: 'out' is a relative path")


def test_a_plan_that_fails_says_so_in_the_state_and_leaves_no_trace(
    run: Callable[..., Deployed], given: dict[str, Any], tmp_path: Path
):
    missing = tmp_path / "nothere.jsonl"
    ended = run("build-dataset", **{**given, "manifest": str(missing)})
    assert ended.state.is_failed()
    assert ended.state.message == f"there is no manifest at {missing}"
    assert not any(line.exc_info for line in ended.log)


def test_a_retry_where_nothing_is_unfinished_says_so_in_the_state(
    run: Callable[..., Deployed], tmp_path: Path
):
    ended = run("retry-failed-shards", output=str(tmp_path))
    assert ended.state.is_failed()
    assert (ended.state.message or "").startswith("there is no unfinished build at")


def test_on_the_command_line_a_relative_output_starts_from_the_working_folder(
    build: Callable[..., dict[str, Any]],
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert build(manifest.name, "here")["answered"] == ROWS
    assert (tmp_path / "here" / "latest.json").exists()


@pytest.mark.usefixtures("worker")
def test_a_typed_name_stays_with_the_builds_id_beside_it(
    run: Callable[..., Deployed], given: dict[str, Any], tmp_path: Path
):
    ended = run("build-dataset", called="my first run", **given)
    assert ended.state.is_completed()
    (build,) = build_ids(str(tmp_path / "out"))
    assert ended.name == f"my first run ({build})"


@pytest.mark.usefixtures("worker")
def test_the_parents_log_says_what_happens_shard_by_shard(
    run: Callable[..., Deployed], given: dict[str, Any]
):
    ended = run("build-dataset", **given)
    said = "\n".join(ended.said)
    assert f"{ROWS} rows in 3 shards" in said
    for shard in range(ROWS // SHARD_ROWS):
        assert f"shard {shard} is done: {SHARD_ROWS} rows" in said
    assert "(3 of 3 done)" in said
    assert "checking and publishing the build" in said


@pytest.mark.usefixtures("worker")
def test_a_build_with_too_many_rejections_says_so_in_its_state_and_in_a_summary(
    run: Callable[..., Deployed], given: dict[str, Any], tmp_path: Path
):
    (tmp_path / "0.wav").write_text("no audio")
    ended = run("build-dataset", **given, max_rejected=0)
    assert ended.state.is_failed()
    message = ended.state.message or ""
    assert not message.startswith("Flow run encountered")
    assert "1 of 6" in message.splitlines()[0]
    assert [line for line in ended.log if line.exc_info] == []
    summary = artifact(ended.id, "markdown")
    assert "Not published" in summary
    assert "not\\_audio" in summary
    assert "3 of 3" in summary


@pytest.mark.usefixtures("worker")
def test_the_retry_form_as_it_is_continues_a_build(
    run: Callable[..., Deployed], given: dict[str, Any], tmp_path: Path, stand_in: StandIn
):
    (tmp_path / "0.wav").write_text("no audio")
    given["engine"] |= {"dtype": "float32"}
    failed = run("build-dataset", **given, max_rejected=0)
    untouched = EngineSettings().model_dump(mode="json")
    ended = run(
        "retry-failed-shards",
        output=str(tmp_path / "out"),
        build="",
        max_rejected=0.5,
        reason=[],
        engine=untouched,
    )
    assert failed.state.is_failed()
    assert ended.state.is_completed(), ended.state.message
    assert stand_in.asked() > 0
    assert Published(tmp_path / "out").folder.name == failed.name


@pytest.mark.usefixtures("worker")
def test_a_retry_with_a_reason_makes_one_new_build_however_often_it_is_retried(
    run: Callable[..., Deployed], given: dict[str, Any], tmp_path: Path
):
    clip = (tmp_path / "0.wav").read_bytes()
    (tmp_path / "0.wav").write_text("no audio")
    output = str(tmp_path / "out")
    first = run("build-dataset", **given)
    (tmp_path / "0.wav").write_bytes(clip)
    asked = {"output": output, "reason": ["not_audio"]}
    failed = run("retry-failed-shards", **asked, max_rejected=0)
    assert first.state.is_completed()
    assert failed.state.is_completed(), failed.state.message
    run("retry-failed-shards", again=failed.id)
    assert len(build_ids(output)) == 2
    assert sorted(Published(tmp_path / "out").by_id()) == list(range(ROWS))


def test_the_form_asks_what_people_decide_first_and_nothing_of_the_engine():
    schema = parameter_schema(build_dataset)
    ordered = sorted(schema.properties, key=lambda name: schema.properties[name]["position"])
    first = ["manifest", "output", "model", "question", "max_tokens", "max_rejected"]
    assert ordered[:6] == first
    assert len(ordered) <= 12
    assert "engine" not in ordered
    assert schema.required == ["manifest", "output", "model"]


def test_the_fields_of_a_group_stand_in_the_order_of_the_settings():
    groups = parameter_schema(build_dataset).definitions
    assert {"SamplingSettings", "AudioSettings", "InputSettings", "LayoutSettings"} <= set(groups)
    for name, model in vars(settings).items():
        if name in groups and name.endswith("Settings"):
            fields = groups[name]["properties"]
            ordered = sorted(fields, key=lambda field, of=fields: of[field]["position"])
            assert ordered == list(model.model_fields)


def test_a_setting_that_may_be_left_out_offers_its_default_by_that_word():
    groups = parameter_schema(build_dataset).definitions
    choices = groups["AudioSettings"]["properties"]["max_duration_s"]["anyOf"]
    assert [choice["title"] for choice in choices] == ["Set", "Default"]


def test_the_retry_form_has_nothing_of_the_engine():
    asked = parameter_schema(retry_failed_shards).properties
    assert list(asked) == ["output", "build", "max_rejected", "reason"]
