"""What builds say their engine cost: measured on an engine whose pace and slots are known."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from test_build_kills import LIMIT_S, Run, finish, segments
from test_cli_build import run
from test_engine_front import Machine, ask_all, question
from workbench import Published, record, tone, write_clip, write_manifest

from deployments.engine_host import EngineHost
from earwitness.builds.layout import Build
from earwitness.engine.usage import EngineTime
from earwitness.runtime import running
from earwitness.settings import BuildSettings, EngineSettings, LayoutSettings
from tests.support.standin import StandIn, parse_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLOTS, LATENCY_S = 4, 0.1
PACE = ("--latency-s", str(LATENCY_S), "--slots", str(SLOTS), "--answer-tokens", "10")
ROWS = 120
LEAST_BUSY_S = ROWS * LATENCY_S / SLOTS
"""As long the slots are filled at least, however the answers fall into them."""
LAYOUT = LayoutSettings(shard_rows=40, batch_rows=10, window_batches=3)
CLIP_S = 0.1
BUILD = ("--shard-rows", 40, "--batch-rows", 10, "--window-batches", 2, "--max-num-seqs", SLOTS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for row in range(ROWS):
        write_clip(folder / f"{row}.wav", tone(200 + 10 * row, CLIP_S))
    return write_manifest(folder / "m.jsonl", [record(f"{row}.wav", id=row) for row in range(ROWS)])


class WithoutMetrics(StandIn):
    async def _metrics(self, _request: web.Request) -> web.Response:
        raise web.HTTPNotFound


@pytest.fixture
def bare() -> Iterator[str]:
    """Address of an engine that tells nothing of itself."""
    loop, address = asyncio.new_event_loop(), []

    async def serve() -> None:
        runner = web.AppRunner(WithoutMetrics(*parse_options(list(PACE))).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")

    loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield address[0]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def account(output: Path) -> dict[str, Any]:
    found = json.loads((Published(output).folder / "build.json").read_text())
    told: dict[str, Any] = found["account"]
    return told


def adds_up(told: dict[str, Any], wall_s: float) -> bool:
    whole = told["busy_s"] + told["starved_s"]
    return bool(whole == pytest.approx(told["engine_s"], abs=0.01)) and told["engine_s"] <= wall_s


def given_engine(url: str, **more: Any) -> EngineSettings:
    return EngineSettings(url=(url,), max_num_seqs=SLOTS, **more)


def test_a_cold_build_and_its_rebuild_tell_what_was_spent_and_what_was_saved(
    manifest: Path,
    tmp_path: Path,
    build: Callable[..., dict[str, Any]],
    start_stand_in: Callable[..., Any],
):
    engine = given_engine(start_stand_in(*PACE).url, price_per_hour=3600.0)
    began_s = time.monotonic()
    build(manifest, tmp_path / "out", engine=engine, layout=LAYOUT)
    cold = account(tmp_path / "out")
    assert adds_up(cold, time.monotonic() - began_s)
    # shards of one process follow one another: none counts the seconds of another
    assert LEAST_BUSY_S * 0.9 < cold["busy_s"] < LEAST_BUSY_S * 2.5
    assert cold["answers"] == ROWS
    assert cold["audio_s"] == pytest.approx(ROWS * CLIP_S)
    assert cold["completion_tokens"] == ROWS * 10
    # by the engine's own count, too: nobody else asked it
    assert cold["engine_completion_tokens"] == ROWS * 10
    assert cold["engine_prompt_tokens"] == cold["prompt_tokens"]
    assert (cold["start_s"], cold["gpu_s"], cold["interrupted"]) == (0, 0, 0)
    assert cold["cost"] == pytest.approx(cold["engine_s"], abs=0.01)

    build(manifest, tmp_path / "out", engine=engine, layout=LAYOUT)
    warm = account(tmp_path / "out")
    assert (warm["engine_s"], warm["answers"], warm["cost"]) == (0, 0, 0)
    assert warm["reused"] == ROWS
    assert warm["saved_s"] == pytest.approx(cold["busy_s"], abs=0.01)
    assert warm["saved_cost"] == pytest.approx(cold["busy_s"], abs=0.01)
    assert warm["basis"] == cold["basis"]

    status, told, _ = run("check", manifest, tmp_path / "out")
    assert status == 0
    assert f"about 0 ({ROWS} reused)" in told
    longer = [record(f"{manifest.parent}/{row}.wav", "And now?") for row in range(60)]
    other = write_manifest(tmp_path / "other.jsonl", longer)
    status, told, _ = run("check", other, tmp_path / "out", "--price-per-hour", 36_000)
    assert "about 60 (0 reused)" in told
    assert "at 36000 per hour" in told
    low_s = float(told.partition("engine time")[2].split()[0])
    assert low_s == pytest.approx(cold["busy_s"] / 2, abs=0.1)


def test_an_engine_without_metrics_costs_its_own_count_and_nothing_else(
    manifest: Path, tmp_path: Path, build: Callable[..., dict[str, Any]], bare: str
):
    build(manifest, tmp_path / "out", engine=given_engine(bare), layout=LAYOUT)
    told = account(tmp_path / "out")
    assert told["busy_s"] > LEAST_BUSY_S * 0.9
    assert told["completion_tokens"] == ROWS * 10
    assert told["engine_completion_tokens"] == 0


def test_a_killed_build_keeps_what_its_checkpoints_knew(manifest: Path, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    flags = (*PACE, "--start-delay-s", "1")
    command = shlex.join([sys.executable, "-m", "tests.support.standin", *flags])
    output = tmp_path / "out"
    words = (manifest, output, "--model", model, "--command", command, *BUILD)
    began_s = time.monotonic()
    first = Run(*words).until(lambda: segments(output) > 1)
    first.kill(lambda pid: os.killpg(pid, signal.SIGKILL))
    said = finish(*words, "--price-per-hour", 7)
    wall_s = time.monotonic() - began_s

    told = account(output)
    assert "(continued)" in said
    assert told["interrupted"] == 1
    assert told["answers"] == ROWS
    # without the first attempt's part there would be less than these answers take
    assert told["busy_s"] > LEAST_BUSY_S * 0.9
    assert adds_up(told, wall_s)
    # its engine was started twice
    assert told["start_s"] > 2
    assert told["price_per_hour"] == 7
    assert told["cost"] == pytest.approx((told["start_s"] + told["engine_s"]) * 7 / 3600, abs=1e-3)


async def test_flow_runs_that_share_an_engine_never_count_a_second_twice(tmp_path: Path):
    async with Machine(tmp_path, "--latency-s", "0.2", slots=2) as machine:
        one, other = machine.flow_run(), machine.flow_run()
        began_s = time.monotonic()
        await asyncio.gather(
            ask_all(one, [f"a{number}" for number in range(12)]),
            ask_all(other, [f"b{number}" for number in range(4)]),
        )
        wall_s = time.monotonic() - began_s
        first, second = await one.account.spent(), await other.account.spent()
    both = first + second
    assert 0.8 * wall_s < both.engine_s < 1.1 * wall_s
    assert both.busy_s <= both.engine_s
    assert both.busy_s > 0.9 * 16 * 0.2 / 2
    assert first.engine_s > second.engine_s > 0
    # the engine was up before anybody needed it
    assert both.start_s == 0
    assert both.completion_tokens > 0


async def test_an_engine_that_dies_under_flow_runs_costs_them_its_restart(tmp_path: Path):
    async with Machine(tmp_path, "--latency-s", "0.3") as machine:
        flow_run = machine.flow_run()
        asking = asyncio.create_task(ask_all(flow_run, ["one", "two"]))
        await asyncio.sleep(0.2)
        machine.kill_engine()
        await asking
        spent = await flow_run.account.spent()
    assert spent.start_s > 0
    assert spent.busy_s <= spent.engine_s


def test_two_builds_on_one_workers_engine_divide_its_time(manifest: Path, tmp_path: Path):
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    model.mkdir()
    (model / "config.json").write_text("{}")
    command = (sys.executable, "-m", "tests.support.standin", *PACE)
    host = EngineHost(
        EngineSettings(command=command, max_num_seqs=SLOTS),
        str(model),
        scratch=scratch,
        clips_per_prompt=16,
    )
    try:
        shared = host.start(lambda _: None).result(LIMIT_S)
        env = {**os.environ, **shared.environment(), "EARWITNESS_SCRATCH": str(scratch)}
        words = ("--model", model, *BUILD)
        began_s = time.monotonic()
        builds = [Run(manifest, tmp_path / name, *words, env=env) for name in ("one", "other")]
        ended = [build.end() for build in builds]
        wall_s = time.monotonic() - began_s
    finally:
        host.close()

    assert [status for status, _ in ended] == [0, 0], ended
    one, other = account(tmp_path / "one"), account(tmp_path / "other")
    assert one["answers"] == other["answers"] == ROWS
    assert one["engine_s"] + other["engine_s"] <= wall_s
    assert one["busy_s"] + other["busy_s"] > 0.9 * 2 * LEAST_BUSY_S
    assert adds_up(one, wall_s)
    assert adds_up(other, wall_s)
    # no token is counted twice; the last ones are missed where nobody reads them in time
    counted = one["engine_completion_tokens"] + other["engine_completion_tokens"]
    assert 0.5 * 2 * ROWS * 10 < counted <= 2 * ROWS * 10
    assert one["start_s"] == other["start_s"] == 0


def test_what_a_failed_checkpoint_did_not_keep_is_for_the_next(
    tmp_path: Path, start_stand_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EARWITNESS_SCRATCH", str(tmp_path))
    engine = given_engine(start_stand_in(*PACE).url)
    with running(BuildSettings(manifest="m", output="o", engine=engine), None) as runtime:
        with runtime.usage() as nothing:
            assert nothing.time == EngineTime()
        runtime.run(runtime.engine.ask(question("What?")))
        with pytest.raises(OSError, match="full"), runtime.usage() as lost:
            raise OSError("the disk is full")
        with runtime.usage() as kept:
            pass
        assert kept.time.values() == pytest.approx(lost.time.values())
        assert kept.time.busy_s >= LATENCY_S / SLOTS
        assert kept.attempt == lost.attempt != ""
        with runtime.usage() as again:
            assert again.time.values() == pytest.approx((0,) * 6, abs=1e-9)


async def test_a_front_tells_nobody_without_its_key_what_its_engine_did(tmp_path: Path):
    async with Machine(tmp_path) as machine, aiohttp.ClientSession() as stranger:
        told = await stranger.get(f"{machine.front.url.removesuffix('/v1')}/account")
        assert told.status == 401


@pytest.mark.usefixtures("prefect_server")
def test_the_summary_in_the_ui_tells_what_a_build_cost(
    manifest: Path, tmp_path: Path, build: Callable[..., dict[str, Any]], stand_in: Any
):
    from prefect.artifacts import Artifact

    from tasks.artifacts import artifact_key

    engine = given_engine(stand_in.url, price_per_hour=36_000.0)
    build(manifest, tmp_path / "out", engine=engine, layout=LAYOUT)
    found = Build(str(tmp_path / "out"), Published(tmp_path / "out").folder.name)
    shown = Artifact.get(artifact_key("summary", found), _sync=True)
    assert shown is not None
    assert "waiting for work |" in str(shown.data)
    assert "at 36000 per hour |" in str(shown.data)
