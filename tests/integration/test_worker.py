"""A worker with its engine: real flow runs from a real server, drained, handed back, killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from earwitness.engine.guardian import descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
MARKER = "EARWITNESS_TEST_RUN"
LIMIT_S = 240
FLOW = """
import atexit, os, subprocess, time
from dataclasses import asdict
from pathlib import Path
from prefect import flow
from earwitness.engine.client import AskRequest
from earwitness.engine.shared import shared_engine
from earwitness.runtime import running
from earwitness.settings import BuildSettings, SamplingSettings

@flow(persist_result=False)
def ask(folder: str, name: str, text: str):
    here = Path(folder)
    if text == "fail" and not (here / f"{name}.failed").exists():
        (here / f"{name}.failed").touch()
        atexit.register(time.sleep, 5)  # its process outlives its end, as with much to clean up
        raise ValueError(text)
    with running(BuildSettings(manifest="m", output="o"), "another name") as runtime:
        runtime.check_model(asdict(shared_engine().model))
        # as decoders are: a child that would outlive a killed flow
        child = subprocess.Popen(["sleep", "600"])
        (here / f"{name}.pid").write_text(str(os.getpid()))
        message = {"role": "user", "content": [{"type": "text", "text": text}]}
        asked = AskRequest((message,), (), SamplingSettings(), max_tokens=9, seed=1)
        answer = runtime.run(runtime.engine.ask(asked))
        while not (here / f"{name}.go").exists():
            time.sleep(0.05)
        child.kill()
        (here / f"{name}.answer").write_text(answer.text)
"""


def until(moment: Callable[[], Any], what: str, told: Callable[[], str] = str) -> Any:
    limit = time.monotonic() + LIMIT_S
    while not (found := moment()):
        assert time.monotonic() < limit, f"it never came: {what}\n{told()}"
        time.sleep(0.1)
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Pool:
    """A work pool with one deployment; runs are made and looked at through the API.

    Each test has its own: what another has left scheduled would take a worker's room.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"worker-tests-{uuid.uuid4().hex}"
        (folder / "worker_test_flow.py").write_text(FLOW)
        self.deploy()

    def _call(self, work: Callable[..., Any], *words: Any) -> Any:
        from prefect.client.orchestration import get_client

        async def call() -> Any:
            async with get_client() as client:
                return await work(client, *words)

        return asyncio.run(call())

    async def _deploy(self, client: Any) -> Any:
        from prefect.client.schemas.actions import WorkPoolCreate

        await client.create_work_pool(WorkPoolCreate(name=self.name, type="process"))
        step = "prefect.deployments.steps.set_working_directory"
        return await client.create_deployment(
            await client.create_flow_from_name("ask"),
            name=uuid.uuid4().hex,
            work_pool_name=self.name,
            entrypoint="worker_test_flow.ask",
            pull_steps=[{step: {"directory": str(self.folder)}}],
        )

    def delete(self) -> None:
        """What the UI's menu of a work pool does."""

        async def delete(client: Any) -> None:
            await client.delete_work_pool(self.name)

        self._call(delete)

    def deploy(self) -> None:
        """Make the pool and its deployment again."""
        self._deployment = self._call(self._deploy)

    def start(self, name: str, text: str = "?") -> str:
        async def create(client: Any) -> Any:
            parameters = {"folder": str(self.folder), "name": name, "text": text}
            return await client.create_flow_run_from_deployment(
                self._deployment, parameters=parameters
            )

        return str(self._call(create).id)

    def state(self, run: str) -> str:
        async def read(client: Any) -> Any:
            return await client.read_flow_run(run)

        return str(self._call(read).state.name)

    def history(self, run: str) -> str:
        """Its states so far, for who must find out what went wrong."""

        async def read(client: Any) -> Any:
            return await client.read_flow_run_states(run)

        told = sorted(self._call(read), key=lambda state: state.timestamp)
        return "\n".join(f"{one.timestamp} {one.name} {one.message or ''}" for one in told)

    def reaches(self, run: str, *names: str) -> str:
        """Wait for one of some states."""
        return str(
            until(
                lambda: (name := self.state(run)) in names and name,
                f"{' or '.join(names)}",
                lambda: self.history(run),
            )
        )

    def retry(self, run: str) -> None:
        """What the UI's Retry button does."""

        async def set_back(client: Any) -> Any:
            from prefect.states import AwaitingRetry

            return await client.set_flow_run_state(run, AwaitingRetry())

        self._call(set_back)

    def pid(self, name: str) -> int:
        path = self.folder / f"{name}.pid"
        return int(until(lambda: path.exists() and path.read_text(), f"run {name}"))

    def go(self, name: str) -> None:
        (self.folder / f"{name}.go").touch()

    def answer(self, name: str) -> str:
        return (self.folder / f"{name}.answer").read_text()


class Worker:
    """`earwitness worker` in a session of its own, all it starts marked."""

    def __init__(self, pool: Pool, *words: str, engine: str = "") -> None:
        folder = pool.folder
        self.mark = uuid.uuid4().hex
        self.log = folder / f"worker-{self.mark}.log"
        model = folder / "model"
        model.mkdir(exist_ok=True)
        (model / "config.json").write_text("{}")
        command = [sys.executable, "-m", "cli.main", "worker", "--pool", pool.name, *words]
        command += ["--model", str(model), "--max-num-seqs", "3"]
        command += ["--command", f"{sys.executable} -m tests.support.standin {engine}"]
        others = {name: os.environ[name] for name in os.environ if "STORAGE_PATH" not in name}
        environment = {
            **others,
            MARKER: self.mark,
            "EARWITNESS_SCRATCH": str(folder / "scratch"),
            "XDG_STATE_HOME": str(folder / "state"),
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PYTHONPATH": str(folder),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )

    def left(self) -> list[str]:
        """All living processes it started, whoever their parent is by now."""
        mark = f"{MARKER}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def proper(self) -> int:
        """The process that polls."""
        for pid in descendants(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if words[1:3] == ["-m", "deployments.worker_process"]:
                return pid
        pytest.fail("there is no worker proper")

    def end(self) -> int:
        status = self.process.wait(LIMIT_S)
        until(lambda: not self.left(), f"the end of {self.left()}")
        return status


@pytest.fixture
def pool(prefect_server: str, tmp_path: Path) -> Pool:  # noqa: ARG001 - runs come from there
    return Pool(tmp_path)


@pytest.fixture
def start_worker(pool: Pool) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*words: str, engine: str = "") -> Worker:
        started.append(Worker(pool, *words, engine=engine))
        return started[-1]

    yield start
    for worker in started:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
        sys.stdout.write(worker.log.read_text())


def test_a_worker_lends_its_engine_and_ends_in_order(
    pool: Pool, start_worker: Callable[..., Worker], tmp_path: Path
):
    killed, beheaded = pool.start("killed"), pool.start("beheaded")
    quick, slow, endless = pool.start("quick"), pool.start("slow"), pool.start("endless")
    worker = start_worker("--limit", "5")
    # killed outright, alone or with what guards it: its children go with it, the run ends
    os.kill(pool.pid("killed"), signal.SIGKILL)
    os.kill(parent(pool.pid("beheaded")), signal.SIGKILL)
    pool.go("quick")
    pool.reaches(killed, "Crashed")
    pool.reaches(beheaded, "Crashed")
    pool.reaches(quick, "Completed")
    assert pool.answer("quick").startswith("stand-in:")
    pool.pid("slow")
    pool.pid("endless")
    assert len([words for words in worker.left() if words.startswith("sleep")]) == 2
    worker.process.send_signal(signal.SIGTERM)
    until(lambda: "stopping: waiting up to" in worker.log.read_text(), "its taking note")
    late = pool.start("late")
    pool.go("slow")
    pool.reaches(slow, "Completed")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0
    assert pool.state(slow) == "Completed"
    assert pool.state(endless) == "AwaitingRetry"
    assert pool.state(late) == "Scheduled"
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (tmp_path / "state" / "earwitness" / "results").is_dir()


def test_a_run_whose_process_is_killed_says_that_a_retry_goes_on(
    pool: Pool, start_worker: Callable[..., Worker]
):
    run = pool.start("killed")
    worker = start_worker()
    os.kill(pool.pid("killed"), signal.SIGKILL)
    pool.reaches(run, "Crashed")
    assert pool.history(run).endswith(" Retry this run: it continues with what is left.")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_a_run_retried_while_its_failed_process_still_ends_is_run_again(
    pool: Pool, start_worker: Callable[..., Worker]
):
    run = pool.start("again", text="fail")
    worker = start_worker("--limit", "2")
    pool.reaches(run, "Failed")
    pool.retry(run)
    pool.go("again")
    pool.pid("again")
    assert pool.reaches(run, "Completed", "Crashed") == "Completed", pool.history(run)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_nothing_outlives_a_worker_that_is_killed(pool: Pool, start_worker: Callable[..., Worker]):
    pool.start("one")
    pool.start("other")
    workers = [start_worker("--limit", "1", "--name", name) for name in ("first", "second")]
    pool.pid("one")
    pool.pid("other")
    os.kill(workers[0].process.pid, signal.SIGKILL)
    os.kill(workers[1].proper(), signal.SIGKILL)
    assert workers[0].end() == -signal.SIGKILL
    assert workers[1].end() == 128 + signal.SIGKILL


def test_an_engine_given_up_ends_the_worker_and_hands_its_runs_back(
    pool: Pool, start_worker: Callable[..., Worker]
):
    run = pool.start("unlucky", text="poison")
    worker = start_worker("--max-restarts", "0", engine="--crash-on poison")
    assert worker.end() == 1
    assert pool.state(run) == "AwaitingRetry"
    assert "error: the engine did not start: it ended unexpectedly" in worker.log.read_text()


def test_a_pool_that_is_deleted_under_a_worker_is_told_and_served_again(
    pool: Pool, start_worker: Callable[..., Worker]
):
    worker = start_worker()
    until(lambda: "polls the work pool" in worker.log.read_text(), "its start")
    pool.delete()
    told = f"failed, and will retry: there is no work pool {pool.name!r} at "
    until(lambda: told in worker.log.read_text(), "its word")
    assert "create the pools with `python -m deployments.setup`" in worker.log.read_text()
    pool.deploy()
    run = pool.start("one")
    pool.go("one")
    assert pool.reaches(run, "Completed", "Crashed") == "Completed"
    worker.process.send_signal(signal.SIGTERM)
    assert worker.end() == 0


def test_a_pool_that_is_not_there_is_told(prefect_server: str):
    command = [sys.executable, "-m", "cli.main", "worker", "--pool", "nowhere"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert told.stderr == (
        f"error: there is no work pool 'nowhere' at {prefect_server}: "
        "create the pools with `python -m deployments.setup`\n"
    )
