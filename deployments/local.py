"""`make up` and `make down`: the whole service on this machine, with the demo's inputs filled in.

It starts a Prefect server, creates the deployments, and starts a worker for each pool (the one for
`gpu` with real vLLM). The server keeps its runs in its own PostgreSQL if PostgreSQL is installed,
otherwise in SQLite. All files are in `.make/up/` (PostgreSQL started by root: in `/var/tmp`). A
variable in the environment marks every process, so that `down` ends these processes and no others.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.postgres import Cluster, find_programs
from deployments.processes import is_marked, marked
from deployments.temporary_server import answers, server_command
from earwitness.engine.server import free_port
from earwitness.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOUSE = Path(__file__).parents[1]
FOLDER = HOUSE / ".make" / "up"
PORT = 4200
"""Prefect's own default; another free one where it is taken."""

_MARK = "EARWITNESS_UP"
_MARKED = f"{_MARK}={FOLDER}"
_SERVER_LOGIN = "PREFECT_SERVER_API_AUTH_STRING"
"""`USER:PASSWORD`: keeps the machine's other users out of the API, which can run anything."""
_PARTS = ("worker-gpu", "worker-default", "server", "database")
"""Its processes, in the order in which they are stopped."""
_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_DATABASE_S = 60.0
_SERVER_S = 180.0
_WORKERS_S = 900.0
"""An engine on a small CPU takes its time."""
_DRAIN_S = 20.0
_STOP_S = 60.0
_POLL_S = 0.5
_MODEL = "demo_model/weights"
_GPU_WORKER = ["--pool", "gpu", "--model", _MODEL, "--dtype", "float32", "--", "--enforce-eager"]
_DEMO = {
    "EARWITNESS_MANIFEST": str(HOUSE / "examples" / "manifest.jsonl"),
    "EARWITNESS_OUTPUT": str(HOUSE / "out" / "up"),
    "EARWITNESS_MODEL": str(HOUSE / _MODEL),
}
# a build's model is the one its worker serves, number format included
_DEMO_PARAMETERS = {"max_tokens": 48, "engine": {"dtype": "float32"}}
_SETTINGS = {
    "PREFECT_HOME": str(FOLDER / "prefect"),
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    # a click should show within seconds
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "DO_NOT_TRACK": "1",
}


def up(port: int | None) -> None:
    """Start everything and say where it is; when it is up already, only say so.

    Args:
        port: Port of the UI. Default: 4200, or any free one.

    Raises:
        FatalError: Something did not start; nothing is left running.
    """
    if all(_running(name) for name in _PARTS if name != "database" or _pid_path(name).exists()):
        _say_where((FOLDER / "address").read_text())
        return
    if _ours():
        _say("some processes have ended; restarting all of them")
        down()
    # the server's database and all logs
    FOLDER.mkdir(parents=True, exist_ok=True)
    FOLDER.chmod(0o700)
    port = _free(port)
    address = f"http://127.0.0.1:{port}"
    environment = _environment(address)
    (FOLDER / "address").write_text(address)
    try:
        _start(environment, address, port)
    except BaseException:
        down()
        raise
    _say_where(address)


def _start(environment: dict[str, str], address: str, port: int) -> None:
    # none but the server is told the database's password
    database = start_database(find_programs(), environment)
    where = "PostgreSQL" if database else "SQLite"
    _say(f"starting the Prefect server (database: {where})")
    _spawn("server", server_command(port), {**environment, **database})
    _wait("server", _SERVER_S, lambda: answers(f"{address}/api/health"))
    _say("creating work pools, queues and automations")
    _do("setup", ["deployments.setup"], environment)
    worker = [sys.executable, "-m", "cli.main", "worker", "--grace-s", f"{_DRAIN_S:g}"]
    # a build that waits for its shards only watches them: many fit beside each other
    _spawn("worker-default", [*worker, "--pool", "default", "--limit", "10"], environment)
    _spawn("worker-gpu", [*worker, *_GPU_WORKER], environment)
    _say("deploying")
    _do("deploy", ["prefect", "deploy", "--all"], environment)
    os.environ.update(environment)
    _fill_in()
    _say("waiting for the workers (vLLM takes about a minute to start)")
    for pool in ("default", "gpu"):
        _wait(f"worker-{pool}", _WORKERS_S, lambda pool=pool: _online(pool))  # type: ignore[misc]


def down() -> None:
    """Stop what `up` started, workers first, and wait until nothing of it is left."""
    for name in _PARTS:
        _stop(name)
    # engines end by themselves when their worker is gone
    if not _until(lambda: not _ours(), _STOP_S):
        for pid in _ours():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _until(lambda: not _ours(), _STOP_S)


def _stop(name: str) -> None:
    pid = _running(name)
    if pid:
        # PostgreSQL would wait for its clients at SIGTERM
        os.kill(pid, signal.SIGINT if name == "database" else signal.SIGTERM)
        _until(lambda: not is_marked(pid, _MARKED), _DRAIN_S + _STOP_S)
    _pid_path(name).unlink(missing_ok=True)


def start_database(programs: Path | None, environment: dict[str, str]) -> dict[str, str]:
    """Start a PostgreSQL for the server.

    Args:
        programs: The folder of PostgreSQL's programs; None: it is not installed.
        environment: Of its process.

    Returns:
        The variables by which the server finds it; none: the server keeps its runs in SQLite.
    """
    if programs is None:
        _say("using SQLite: PostgreSQL is not installed (Debian: apt-get install postgresql)")
        return {}
    cluster, port = _cluster(programs), free_port()
    try:
        cluster.make()
        _spawn("database", cluster.command(port), environment)
        _wait("database", _DATABASE_S, lambda: cluster.answers(port))
    except FatalError as error:
        _say(f"using SQLite: PostgreSQL cannot be used ({error})")
        _stop("database")
        return {}
    return {_DATABASE: cluster.url(port)}


def _cluster(programs: Path) -> Cluster:
    folder = FOLDER / "postgres"
    if os.geteuid() == 0:
        # the user that it runs as may not be able to reach root's folders
        digest = hashlib.sha256(str(FOLDER).encode()).hexdigest()[:8]
        folder = Path(f"/var/tmp/earwitness-postgres-{digest}")  # noqa: S108 - refused if not private
    return Cluster(folder, programs)


def _clean() -> None:
    programs = find_programs()
    if programs is not None:
        _cluster(programs).remove()
    shutil.rmtree(FOLDER)


def _environment(address: str) -> dict[str, str]:
    """The environment of everything; a Prefect that is configured otherwise stays out of it."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own.get('PATH', os.defpath)}"
    here = {"PREFECT_API_URL": f"{address}/api", _MARK: str(FOLDER), "PATH": path}
    login = os.environ.get(_SERVER_LOGIN)
    guarded = {_SERVER_LOGIN: login, "PREFECT_API_AUTH_STRING": login} if login else {}
    return {**own, **_SETTINGS, **_DEMO, **here, **guarded}


def _free(wanted: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or PORT))
        except OSError as error:
            if wanted:
                raise FatalError(f"port {wanted} is in use: choose another one") from error
            return free_port()
    return wanted or PORT


def _spawn(name: str, command: list[str], environment: dict[str, str]) -> None:
    """Start a server that stays when we are gone."""
    with (FOLDER / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=HOUSE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _pid_path(name).write_text(str(process.pid))


def _do(name: str, module: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", *module]
    log = FOLDER / f"{name}.log"
    with log.open("wb") as output:
        done = subprocess.run(
            command, cwd=HOUSE, env=environment, stdout=output, stderr=output, check=False
        )
    if done.returncode:
        raise FatalError(f"{' '.join(module)} failed: {_last_words(log)}")


def _fill_in() -> None:
    """Give the builds' forms what the demo's model wants besides."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    with get_client(sync_client=True) as client:
        for name in ("nightly", "adhoc"):
            deployment = client.read_deployment_by_name(f"build-dataset/{name}")
            parameters = {**deployment.parameters, **_DEMO_PARAMETERS}
            client.update_deployment(deployment.id, DeploymentUpdate(parameters=parameters))


def _online(pool: str) -> bool:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus

    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    with get_client(sync_client=True) as client:
        return bool(client.read_workers_for_work_pool(pool, worker_filter=online))


def _wait(name: str, limit_s: float, ready: Callable[[], bool]) -> None:
    limit = time.monotonic() + limit_s
    log = FOLDER / f"{name}.log"
    while not ready():
        if not _running(name):
            raise FatalError(f"the {name} did not start: {_last_words(log)} (full log: {log})")
        if time.monotonic() > limit:
            raise FatalError(f"the {name} is not ready after {limit_s:g} s; see {log}")
        time.sleep(_POLL_S)


def _until(true: Callable[[], bool], limit_s: float) -> bool:
    limit = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > limit:
            return False
        time.sleep(_POLL_S)
    return True


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip(" ─│╭╮╰╯\t")]
    errors = [line for line in said if line.startswith("error:")]
    return (errors or said or ["it printed nothing"])[-1]


def _running(name: str) -> int | None:
    """The process id of one of ours, while it lives."""
    try:
        pid = int(_pid_path(name).read_text())
    except (OSError, ValueError):
        return None
    return pid if is_marked(pid, _MARKED) else None


def _pid_path(name: str) -> Path:
    return FOLDER / f"{name}.pid"


def _ours() -> list[int]:
    """All processes that `up` started, and those they started."""
    return [pid for pid in marked(_MARKED) if pid != os.getpid()]


def _say(text: str) -> None:
    sys.stderr.write(f"+ {text}\n")


def _say_where(address: str) -> None:
    logs = FOLDER.relative_to(HOUSE)
    sys.stdout.write(f"""
earwitness is up: {address}

  Deployments > adhoc > Run > Custom run > Submit builds the demo; the form is filled in.
  In a shell:   PREFECT_API_URL={address}/api .venv/bin/prefect deployment run build-dataset/adhoc
  The dataset:  out/up     Logs: {logs}/*.log     Stop: make down
""")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `up`, `down`, or `clean`: down, and delete what the server remembers.

    Args:
        arguments: The command line. Default: the process's own.
    """
    parser = argparse.ArgumentParser(prog="python -m deployments.local", description=__doc__)
    parser.add_argument("what", choices=["up", "down", "clean"])
    parser.add_argument("--port", type=int, help=f"port of the UI (default: {PORT}, if free)")
    options = parser.parse_args(arguments)
    try:
        if options.what == "up":
            up(options.port)
        else:
            down()
            shutil.rmtree(FOLDER / "prefect" / "storage", ignore_errors=True)
            if options.what == "clean":
                _clean()
            _say("earwitness is down")
    except FatalError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
