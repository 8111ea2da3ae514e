"""A whole service for a test: Prefect server, pools, deployments and workers, all processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prefect_api import Api
from processes import MARKER, family, nothing_is_left
from workbench import free_port, wait_for

from deployments.temporary_server import server_command
from earwitness.engine.guardian import Guarded, start_guarded

if TYPE_CHECKING:
    from collections.abc import Mapping

HOUSE = Path(__file__).parents[2]
EARWITNESS = (sys.executable, "-m", "cli.main")
COMMAND_S = 300.0
ENGINE_START_S = 300.0
STOP_S = 60.0

SETTINGS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    # no nightly build starts in the middle of a test
    "EARWITNESS_CRON": "0 0 29 2 *",
}


def inherited() -> dict[str, str]:
    """This process's environment without what other tests tell Prefect in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


@dataclass
class Worker:
    """An `earwitness worker`, in a session of its own."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def terminate(self) -> None:
        """SIGTERM: no new runs, those it has finish."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the process that was started, and to it alone."""
        self.process.kill()
        self.process.wait()

    def ended(self, limit_s: float = STOP_S) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(limit_s)


@dataclass
class Pool:
    """Server, pools and deployments as the operating guide makes them, and any number of workers.

    All it starts bears `mark` in its environment; leaving the block ends it all, and fails if
    anything lives on.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    database: str | None = None
    """Connection URL of the server's database. Default: SQLite in `folder`."""
    workers: list[Worker] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.ui_url = f"http://127.0.0.1:{self.port}"
        self.api = Api(f"{self.ui_url}/api")
        self.server_log = self.folder / "server.log"
        self._server: Guarded | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start_server()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        living = [worker for worker in self.workers if worker.process.poll() is None]
        for worker in living:
            # the second signal: runs are handed back, not waited for
            worker.terminate()
            time.sleep(0.1)
            worker.terminate()
        for worker in living:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.ended(STOP_S)
        self.stop_server()
        try:
            nothing_is_left(self.mark)
        finally:
            for pid in family(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def variables(self) -> dict[str, str]:
        """What all its processes have in their environment."""
        given = {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api.url,
            "PREFECT_SERVER_UI_API_URL": self.api.url,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            MARKER: self.mark,
        }
        if self.database:
            given["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = self.database
        return {**SETTINGS, **given, **self.environment}

    def start_server(self) -> None:
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        # as the guide has it; SQLite is for servers that we start ourselves
        guides = [sys.executable, "-m", "prefect", *words]
        command = guides if self.database else server_command(self.port)
        self._server = start_guarded(command, log_path=self.server_log, env=self.variables)
        wait_for(f"{self.api.url}/health", self._server, self.server_log)

    def stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def command(self, *words: str | Path, **variables: str) -> str:
        """Runs a command to its end; gives what it said. It fails the test if it fails."""
        done = subprocess.run(
            [str(word) for word in words],
            cwd=HOUSE,
            env={**inherited(), **self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        assert done.returncode == 0, f"{words}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def deploy(self, manifest: Path | str, output: Path | str, model: Path | str = "") -> None:
        """What the operating guide tells an operator to type."""
        given = {"MANIFEST": manifest, "OUTPUT": output, "MODEL": model}
        variables = {f"EARWITNESS_{name}": str(value) for name, value in given.items() if value}
        self.command(sys.executable, "-m", "deployments.setup")
        # the console script beside this interpreter, as in an activated environment
        self.command(Path(sys.executable).parent / "prefect", "deploy", "--all", **variables)

    def start_worker(self, pool: str, *flags: str | Path, name: str, **variables: str) -> Worker:
        """Starts a worker; `wait_for_workers` waits until it takes runs."""
        log_path = self.folder / f"worker-{name}.log"
        # a test run that is killed takes its workers along
        tied = ["setpriv", "--pdeathsig", "KILL", "--"]
        words = [*tied, *EARWITNESS, "worker", "--pool", pool, "--name", name, *map(str, flags)]
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                words,
                cwd=HOUSE,
                env={**inherited(), **self.variables, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(name, process, log_path)
        self.workers.append(worker)
        return worker

    def wait_for_workers(self, limit_s: float = ENGINE_START_S) -> None:
        """Waits until every worker that lives takes runs."""
        limit = time.monotonic() + limit_s
        while True:
            for worker in self.workers:
                assert worker.process.poll() is None, f"{worker.name} ended:\n{worker.log}"
            online = self.api.online("default") | self.api.online("gpu")
            missing = [worker for worker in self.workers if worker.name not in online]
            if not missing:
                return
            if time.monotonic() > limit:
                raise AssertionError(f"{missing[0].name} takes no runs:\n{missing[0].log}")
            time.sleep(0.2)
