"""`prefect.yaml` and `deployments/` on a real Prefect server, and before their own validators."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.flows import load_flow_from_entrypoint
from prefect.settings.legacy import _get_valid_setting_names
from prefect.settings.models.root import Settings
from prefect.states import Pending, Running
from prefect.utilities.callables import parameter_schema
from workbench import free_port, wait_for

import earwitness
from deployments import setup
from deployments.steps import check_version
from earwitness.engine.guardian import start_guarded
from earwitness.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

HOUSE = Path(__file__).parents[2]
COMPOSE = HOUSE / "deployments" / "compose"
UNITS = HOUSE / "deployments" / "systemd"
DEPLOYMENTS = yaml.safe_load((HOUSE / "prefect.yaml").read_text())["deployments"]
NAMES = [f"{entry['entrypoint'].rpartition('.')[2]}/{entry['name']}" for entry in DEPLOYMENTS]
DATASET = {
    "EARWITNESS_MANIFEST": "s3://b/m.jsonl",
    "EARWITNESS_OUTPUT": "s3://b/o",
    "EARWITNESS_MODEL": "owner/name",
}
SETTLED = {"unchanged"}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("EARWITNESS_")}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=HOUSE,
        env={**own, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def set_up(*arguments: str) -> list[str]:
    """What was done about each thing."""
    done = run("deployments.setup", *arguments)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.split("\n\n")[0].strip().splitlines()
    return [re.split(r"\s{2,}", row.strip())[-1] for row in rows]


def deploy(*which: str, **environment: str) -> None:
    done = run("prefect", "deploy", *which, **environment)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def client(prefect_server: str) -> Iterator[SyncPrefectClient]:
    assert prefect_server
    set_up()
    deploy("--all")
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def start(client: SyncPrefectClient) -> Iterator[Callable[..., UUID]]:
    """Starts runs of a deployment; none is left for another test's worker to take."""
    started: list[UUID] = []

    def start(name: str, queue: str | None = None, **given: Any) -> UUID:
        deployment = client.read_deployment_by_name(name).id
        run = client.create_flow_run_from_deployment(
            deployment, parameters=given, work_queue_name=queue
        )
        started.append(run.id)
        return run.id

    yield start
    for run in started:
        client.delete_flow_run(run)


@pytest.mark.parametrize("entry", DEPLOYMENTS, ids=NAMES)
def test_every_entrypoint_is_a_flow_and_takes_the_parameters_set(entry: dict):
    flow = load_flow_from_entrypoint(entry["entrypoint"])
    schema = parameter_schema(flow).model_dump_for_openapi()
    set_here = dict.fromkeys(entry.get("parameters", {}), "s3://bucket/object")
    missing = {name: 0 if name == "shard" else "x" for name in schema["required"]}
    assert set(set_here) <= set(schema["properties"])
    assert flow.validate_parameters({**missing, **set_here})


@pytest.mark.parametrize("entry", DEPLOYMENTS, ids=NAMES)
def test_every_pool_and_queue_named_is_one_that_setup_makes(entry: dict):
    assert entry["work_pool"]["name"] in setup.POOLS
    assert entry["work_pool"]["work_queue_name"] in setup.QUEUES


@pytest.mark.parametrize(
    ("pool", "deployment", "given"),
    [
        ("gpu", "build-shard/gpu", {"build": "b", "shard": 0}),
        ("default", "retry-failed-shards/default", {"output": "o"}),
    ],
)
def test_people_go_before_the_night(
    client: SyncPrefectClient,
    start: Callable[..., UUID],
    pool: str,
    deployment: str,
    given: dict[str, Any],
):
    start(deployment, "nightly", **given)
    interactive = start(deployment, "interactive", **given)
    path = {"name": pool}
    taken = client.request(
        "POST", "/work_pools/{name}/get_scheduled_flow_runs", path_params=path, json={"limit": 1}
    ).json()
    assert [run["flow_run"]["id"] for run in taken] == [str(interactive)]


def test_a_second_set_up_changes_nothing(client: SyncPrefectClient):
    assert client.read_work_pool("gpu").type == "process"
    assert set(set_up()) == SETTLED
    assert "changed" in set_up("--gpu-limit", "3", "--zombie-after-s", "120")
    assert set(set_up("--gpu-limit", "3", "--zombie-after-s", "120")) == SETTLED
    assert client.read_work_pool("gpu").concurrency_limit == 3


def test_a_pool_of_another_type_is_named(client: SyncPrefectClient):
    client.create_work_pool(setup.WorkPoolCreate(name="other", type="docker"))
    with pytest.raises(setup.FatalError, match="type 'docker'"):
        setup._pool(client, "other", "", None)


def test_of_a_secret_only_its_blocks_name_is_stored(client: SyncPrefectClient):
    from prefect.blocks.system import Secret

    Secret(value="s3cr3t").save("aws", overwrite=True)
    set_up("--secret", "AWS_SECRET_ACCESS_KEY=aws")
    template = json.dumps(client.read_work_pool("gpu").base_job_template)
    assert "prefect.blocks.secret.aws" in template
    assert "s3cr3t" not in template


def test_a_block_that_is_not_there_is_one_clear_line(client: SyncPrefectClient):
    assert client
    done = run("deployments.setup", "--notify", "slack-webhook/none")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no block slack-webhook/none")


def test_nothing_of_the_deploying_machine_goes_along(client: SyncPrefectClient):
    for entry, name in zip(DEPLOYMENTS, NAMES, strict=True):
        flow, _, deployment = name.partition("/")
        deployed = client.read_deployment_by_name(f"{flow.replace('_', '-')}/{deployment}")
        assert str(HOUSE) not in deployed.model_dump_json()
        assert deployed.work_queue_name == entry["work_pool"]["work_queue_name"]
        assert deployed.pull_steps == [
            {"deployments.steps.check_version": {"version": earwitness.__version__}}
        ]


def test_the_nightly_schedule_is_on_only_when_it_knows_what_to_build(client: SyncPrefectClient):
    def schedules() -> list[Any]:
        return client.read_deployment_by_name("build-dataset/nightly").schedules

    (schedule,) = schedules()
    assert not schedule.active
    deploy("--name", "nightly", **DATASET, EARWITNESS_TIMEZONE="Europe/Berlin")
    (schedule,) = schedules()
    assert schedule.active
    assert schedule.schedule.timezone == "Europe/Berlin"


@pytest.mark.parametrize("how", ["schedule", "deployment"])
def test_a_nightly_that_somebody_paused_stays_paused_after_a_deploy(
    client: SyncPrefectClient, how: str
):
    def nightly() -> Any:
        return client.read_deployment_by_name("build-dataset/nightly")

    deploy("--name", "nightly", **DATASET)
    before = nightly()
    if how == "schedule":
        client.update_deployment_schedule(before.id, before.schedules[0].id, active=False)
    else:
        client.pause_deployment(before.id)
    deploy("--name", "nightly", **DATASET, EARWITNESS_CRON="0 3 * * *")
    after = nightly()
    assert after.schedules[0].schedule.cron == "0 3 * * *"
    assert after.paused or not after.schedules[0].active
    client.update_deployment_schedule(after.id, after.schedules[0].id, active=True)


def test_a_run_that_does_not_say_what_to_build_is_refused_by_name(client: SyncPrefectClient):
    assert client
    asked = run("prefect", "deployment", "run", "build-dataset/adhoc", "-p", "output=o")
    assert "'manifest' is a required property" in asked.stdout + asked.stderr


def test_a_second_nightly_is_refused_while_one_is_going(
    client: SyncPrefectClient, start: Callable[..., UUID]
):
    given = {"manifest": "m", "output": "o", "model": "m"}
    first, second = (start("build-dataset/nightly", **given) for _ in range(2))
    assert client.set_flow_run_state(first, Pending()).state.is_pending()
    assert client.set_flow_run_state(second, Pending()).state.is_cancelled()


def test_a_worker_of_another_version_says_what_to_do():
    check_version(earwitness.__version__)
    with pytest.raises(SettingsError, match="Update the worker's checkout"):
        check_version("0.0.1")


def test_a_run_whose_heartbeat_stops_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a server that watches; in a second, not in half a minute, as runs' heartbeats would."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    server = start_guarded(command, log_path=tmp_path / "log", env=settings)
    try:
        wait_for(f"{url}/health", server, tmp_path / "log")
        set_up("--zombie-after-s", "10")
        with SyncPrefectClient(url) as client:
            flow = load_flow_from_entrypoint("flows.build_shard.build_shard")
            lives = client.create_flow_run(
                flow, parameters={"build": "b", "shard": 0}, state=Running()
            )
            beat(url, lives.id)
            deadline = time.monotonic() + 60
            while not client.read_flow_run(lives.id).state.is_final():
                assert time.monotonic() < deadline
                time.sleep(0.5)
            state = client.read_flow_run(lives.id).state
    finally:
        server.stop()
    assert state.is_crashed()
    assert state.message == (
        "No heartbeat for 10 s: its process or its machine is gone. Retry continues it."
    )


def beat(url: str, run_id: object) -> None:
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
    }
    httpx.post(f"{url}/events", json=[event]).raise_for_status()


def test_every_prefect_setting_named_exists():
    known = _get_valid_setting_names(Settings)
    pages = [HOUSE / "docs/operating.md", HOUSE / "prefect.yaml", COMPOSE / "compose.yaml"]
    pages += [*UNITS.iterdir(), HOUSE / "deployments/local.py"]
    said = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\bPREFECT_[A-Z_]+[A-Z]\b", page.read_text())
    }
    # of the compose file's own .env
    said -= {("compose.yaml", "PREFECT_AUTH"), ("compose.yaml", "PREFECT_ADDRESS")}
    assert sorted(named for named in said if named[1] not in known) == []


def test_systemd_takes_the_units(tmp_path: Path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    units = []
    for unit in UNITS.glob("*.service"):
        units.append(tmp_path / unit.name.replace("@", "@gpu"))
        # it looks whether the commands are there
        text = unit.read_text().replace(
            "/opt/earwitness/.venv/bin", str(Path(sys.executable).parent)
        )
        units[-1].write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"]], ids=["default", "gpu"])
def test_compose_takes_the_file(profile: list[str]):
    if not shutil.which("docker-compose"):
        pytest.skip("docker-compose is not installed (Debian: docker-compose)")
    files = ["--env-file", str(COMPOSE / "env.example"), "-f", str(COMPOSE / "compose.yaml")]
    command = ["docker-compose", *files, *profile, "config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["deploy"]["environment"]["EARWITNESS_MANIFEST"] == "s3://bucket/clips.jsonl"
    assert "gpu-worker" in services
