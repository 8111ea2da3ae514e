"""Builds over the pool: from the guide's first command to every way of putting one right.

Real server, services, workers, vLLM engines and S3; the clips that fail come from a web server
that answers 503 until it is mended.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import guide
import pytest
from engines import ANSWERED, RUNNING, Engines
from house import (
    BATCH_ROWS,
    LIMIT_S,
    ROWS,
    SHARD_ROWS,
    SHARDS,
    House,
    digests,
    facts,
    receipts,
    show,
)
from pool import EARWITNESS
from service import ENGINE, GPU_WORKERS, STAND_IN, here
from workbench import Published, WebServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pool import Pool

pytestmark = pytest.mark.engine

FAILING = 1
LOST = range(ROWS - BATCH_ROWS, ROWS)
"""Rows whose clips fail: the failing shard's last batch. Its first one is answered."""
WAYS = ("child", "parent", "deployment", "shell")
CANCELLED_WITHIN_S = 90


@pytest.fixture(scope="module")
def house(
    service: Pool, s3_bucket: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    with WebServer() as web:
        folder = tmp_path_factory.mktemp("clips")
        yield House(service, web, Engines(service), s3_bucket[0], folder)


def test_the_guides_commands_end_with_the_nightly_build_scheduled(service: Pool):
    told = {}
    for line in guide.block("prefect deploy --all"):
        for word in line.removeprefix("export ").split(" EARWITNESS_"):
            name, _, value = word.removeprefix("EARWITNESS_").partition("=")
            told[name] = value.strip("'")
    nightly = service.api.deployment("build-dataset/nightly")
    (entry,) = nightly["schedules"]
    assert entry["active"]
    assert entry["schedule"]["cron"] == told["CRON"] == "0 2 * * *"
    assert entry["schedule"]["timezone"] == told["TIMEZONE"]
    assert nightly["parameters"]["manifest"] == told["MANIFEST"]
    assert nightly["parameters"]["output"] == told["OUTPUT"]

    wanted = {"deployment_id": {"any_": [nightly["id"]]}} | {
        "state": {"name": {"any_": ["Scheduled"]}}
    }
    limit = time.monotonic() + LIMIT_S
    while not (runs := service.api.flow_runs(**wanted)):
        assert time.monotonic() < limit, "the scheduler made no run"
        time.sleep(0.5)
    next_start = min(datetime.fromisoformat(run["expected_start_time"]) for run in runs)
    local = next_start.astimezone(ZoneInfo(told["TIMEZONE"]))
    assert (local.hour, local.minute) == (2, 0)
    # no night falls while the tests run
    service.api.pause(nightly["id"])


def test_the_guides_first_build_is_published_on_s3_by_both_workers(house: House):
    # what the guide says of `engine`
    house.pool.api.set_defaults("build-dataset/adhoc", engine=ENGINE)
    line = guide.line("prefect deployment run build-dataset/adhoc")
    # shards small enough for two workers
    line += " -p 'layout={\"shard_rows\": 5}'"
    printed = guide.typed(house.pool, [line], here(house.pool))
    run = printed.split("UUID: ")[1].split()[0]
    house.expect(run, "COMPLETED")

    published = house.published("s3://bucket/dataset")
    assert published.folder.name == house.name(run)
    wrong = [row for row in published.answers() if row["answer"] != row["expected"]]
    assert STAND_IN or not wrong, wrong
    reasons = facts(published)["counts"]["reasons"]
    assert reasons == {"clip_missing": 1, "not_audio": 1}
    ledger = receipts(published)
    for one in ledger:
        show(f"shard {one['shard']} → {one['worker']}: {one['counts']['rows']} rows")
    assert {one["worker"] for one in ledger} == set(GPU_WORKERS) == set(house.engines.fronts)
    artifact = house.pool.api.artifact(run, "table")
    table = house.pool.api.get(f"/artifacts/{artifact}")["data"]
    assert sorted(row["worker"] for row in table) == sorted(one["worker"] for one in ledger)


def test_the_guides_status_tells_of_the_build(house: House):
    line = guide.line("earwitness status")
    assert "dataset-" in guide.typed(house.pool, [line], here(house.pool))


@pytest.fixture(scope="module")
def night(house: House) -> tuple[list[dict[str, Any]], Published]:
    """The nightly deployment started twice at the same moment: both ends, and what is there."""
    manifest, output = house.write("waves", ROWS), "s3://bucket/night"
    with ThreadPoolExecutor(2) as both:
        started = both.map(
            lambda _: house.start("build-dataset/nightly", manifest, output), range(2)
        )
        runs = list(started)
    ends = [house.pool.api.wait(run, limit_s=LIMIT_S) for run in runs]
    return ends, house.published(output)


def test_the_same_nightly_twice_at_once_is_one_build(night):
    ends, published = night
    cancelled, completed = sorted(ends, key=lambda end: str(end["type"]))
    assert (cancelled["type"], completed["type"]) == ("CANCELLED", "COMPLETED"), ends
    assert "concurrency limit" in cancelled["message"].lower()
    assert [folder.name for folder in (published.output / "builds").iterdir()] == [
        published.folder.name
    ]
    assert facts(published)["counts"]["generated"] == ROWS


@dataclass(frozen=True)
class Broken:
    """A build that was not published, for its storage failed."""

    output: str
    parent: str
    build: str
    shards: dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def broken(house: House, night: object) -> dict[str, Broken]:
    """Four builds of one manifest, all failed the same way; the storage is mended since."""
    assert night
    house.web.statuses |= {f"/waves/{row}.wav": 503 for row in LOST}
    outputs = {way: f"s3://bucket/ways/{way}" for way in WAYS}
    runs = {
        way: house.start("build-dataset/adhoc", str(house.folder / "waves.jsonl"), output)
        for way, output in outputs.items()
    }
    before = house.engines.asked()
    found = {}
    for way, run in runs.items():
        said = house.expect(run, "FAILED")["message"]
        assert f"1 of {SHARDS} shards not done" in said
        assert f"{len(LOST)} of {SHARD_ROWS} clips could not be fetched" in said
        build = house.name(run)
        shards = house.pool.api.shards(build)
        assert {n: one["state"]["type"] for n, one in shards.items()} == {
            0: "COMPLETED",
            FAILING: "FAILED",
        }
        found[way] = Broken(outputs[way], run, build, shards)
    assert house.engines.asked() - before == len(WAYS) * (ROWS - len(LOST))
    assert not list(house.bucket.glob("ways/*/latest.json"))
    house.web.statuses.clear()
    return found


@pytest.fixture(scope="module")
def mended(house: House, broken: dict[str, Broken]) -> int:
    """Each build retried its own way, all at once; how many requests that took."""
    api, before = house.pool.api, house.engines.asked()
    by_child, by_parent = broken["child"], broken["parent"]
    by_deployment, by_shell = broken["deployment"], broken["shell"]
    # what the UI's Retry button does
    api.set_state(by_child.shards[FAILING]["id"], "SCHEDULED", "AwaitingRetry")
    api.set_state(by_parent.parent, "SCHEDULED", "AwaitingRetry")
    given = {"output": by_deployment.output, "build": by_deployment.build}
    run = api.run("retry-failed-shards/default", **given)
    house.pool.command(*EARWITNESS, "retry", by_shell.output, "--shards-on", "build-shard/gpu")
    house.expect(by_child.shards[FAILING]["id"], "COMPLETED")
    house.expect(by_parent.parent, "COMPLETED")
    house.expect(run, "COMPLETED")
    return house.engines.asked() - before


def test_a_retry_asks_only_what_the_failed_shard_still_lacks(mended: int):
    assert mended == len(WAYS) * len(LOST)


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_retry_publishes_the_bytes_of_an_undisturbed_build(
    house: House, broken: dict[str, Broken], night, way: str
):
    one, (_, undisturbed) = broken[way], night
    published = house.published(one.output)
    assert published.folder.name == one.build
    assert digests(published) == digests(undisturbed)
    assert sorted(published.by_id()) == list(range(ROWS))
    counts = facts(published)["counts"]
    assert (counts["rows"], counts["generated"], counts["rejected"]) == (ROWS, ROWS, 0)


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_retry_goes_on_with_the_failed_shards_run_alone(
    house: House, broken: dict[str, Broken], way: str
):
    after = house.pool.api.shards(broken[way].build)
    assert {n: run["id"] for n, run in after.items()} == {
        n: run["id"] for n, run in broken[way].shards.items()
    }
    assert [after[n]["run_count"] for n in range(SHARDS)] == [1, 2]
    assert {run["state"]["type"] for run in after.values()} == {"COMPLETED"}


@pytest.mark.usefixtures("mended")
def test_a_shard_retried_alone_publishes_for_a_parent_that_stays_failed(
    house: House, broken: dict[str, Broken]
):
    one = broken["child"]
    assert house.pool.api.state(one.parent)["type"] == "FAILED"
    said = house.pool.api.state(one.shards[FAILING]["id"])["message"]
    assert "this was the last shard, and the build is published" in said


def test_a_cancelled_build_gives_the_engines_back_and_a_retry_resumes_it(house: House):
    api, output = house.pool.api, "s3://bucket/cancelled"
    manifest = house.write("long", ROWS)
    # each shard's last batch cannot come, so that no shard is done too soon
    house.web.held |= {
        f"/long/{row}.wav" for row in range(ROWS) if row % SHARD_ROWS >= SHARD_ROWS - BATCH_ROWS
    }
    rambling = {"sampling": {"temperature": 2, "top_p": 1}, "max_tokens": 600}
    before = house.engines.asked()
    parent = house.start("build-dataset/adhoc", manifest, output, **rambling)
    limit = time.monotonic() + LIMIT_S
    # a batch may be over between two looks
    while not (house.engines.total(RUNNING) or house.engines.asked() > before):
        assert time.monotonic() < limit, api.logs(parent)
        if len(house.engines.fronts) < len(GPU_WORKERS):
            house.engines.look()
    build = house.name(parent)
    for run in api.shards(build).values():
        api.wait(run["id"], "RUNNING", limit_s=LIMIT_S)

    api.set_state(parent, "CANCELLING")
    started = time.monotonic()
    for run in [parent, *(run["id"] for run in api.shards(build).values())]:
        api.expect(run, "CANCELLED", limit_s=CANCELLED_WITHIN_S)
    show(f"all cancelled within {time.monotonic() - started:.1f} s")
    assert house.engines.idle_within(10)
    show(f"requests the engines dropped: {house.engines.total(ANSWERED, finished_reason='abort')}")
    assert not house.published(output).output.joinpath("latest.json").exists()

    house.web.held.clear()
    house.expect(api.run("retry-failed-shards/default", output=output), "COMPLETED")
    published = house.published(output)
    assert published.folder.name == build
    assert sorted(published.by_id()) == list(range(ROWS))
    assert facts(published)["counts"]["generated"] == ROWS


@pytest.mark.usefixtures("mended")
def test_no_secret_is_told_to_the_server_or_written_with_a_build(
    house: House, s3_bucket: tuple[Path, dict[str, str]]
):
    _, environment = s3_bucket
    secrets = [environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]]
    secrets += [key for _, key in house.engines.fronts.values()]
    assert len(set(secrets)) == 2 + len(GPU_WORKERS)
    told = {
        kind: json.dumps(list(house.pool.api.everything(kind)))
        for kind in ("flow_runs", "task_runs", "logs", "artifacts", "variables", "deployments")
    }
    told["work pools"] = json.dumps(house.pool.api.post("/work_pools/filter"))
    assert len(told["logs"]) > 1000
    for path in house.bucket.rglob("*"):
        if path.is_file():
            told[str(path)] = path.read_bytes().decode(errors="replace")
    assert [path for path in told if path.endswith(("build.json", "plan.json"))]
    leaks = [
        (where, secret) for where, text in told.items() for secret in secrets if secret in text
    ]
    assert leaks == []
