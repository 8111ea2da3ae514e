"""Anything of the service is killed in mid-build: the build ends whole, and nothing is left over.

Real Prefect server, pools, workers and vLLM. Whatever is killed, the dataset has the bytes of an
undisturbed build's, no run stays in Running and no process without its owner.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
import wave
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from processes import family
from service import ENGINE, MODEL, STAND_IN, start_gpu_worker

from earwitness.engine.guardian import descendants

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pool import Pool, Worker

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

ROWS, SHARD_ROWS, CLIPS = 96, 24, 6
LAYOUT = {"shard_rows": SHARD_ROWS, "batch_rows": 4, "window_batches": 2}
ZOMBIE_S = 75
"""Heartbeats are 30 s apart at least, and a busy machine sends one late."""


class Killing:
    """Builds of one manifest over the service, and what they leave."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self.pool, self.api, self.folder = pool, pool.api, folder
        self.manifest = self._write_manifest()
        self.undisturbed: dict[str, bytes] = {}

    def _write_manifest(self) -> Path:
        for number in range(CLIPS):
            times = np.arange(16_000) / 16_000
            samples = (8_000 * np.sin(2 * np.pi * (200 + 100 * number) * times)).astype("<i2")
            with wave.open(str(self.folder / f"{number}.wav"), "wb") as clip:
                clip.setparams((1, 2, 16_000, len(samples), "NONE", ""))
                clip.writeframes(samples.tobytes())
        lines = []
        for row in range(ROWS):
            turns = [{"from": "human", "value": f"What is sound {row}?"}]
            lines.append({"audio": [f"{row % CLIPS}.wav"], "conversation": turns, "id": row})
        manifest = self.folder / "m.jsonl"
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return manifest

    def start(self, name: str) -> tuple[str, Path]:
        """Start a build; its parent's run, and its output."""
        output = self.folder / name
        # builds are compared byte for byte
        sampling = {"seed": 1}
        given = {"engine": ENGINE, "max_tokens": 24, "layout": LAYOUT, "sampling": sampling}
        places = {"manifest": str(self.manifest), "output": str(output), "model": str(MODEL)}
        return self.api.run("build-dataset/adhoc", **places, **given), output

    def worker(self, name: str) -> Worker:
        return next(worker for worker in self.pool.workers if worker.name == name)

    def replace(self, worker: Worker) -> Worker:
        """Start a worker that has ended anew."""
        self.pool.workers.remove(worker)
        anew = start_gpu_worker(self.pool, worker.name)
        self.pool.wait_for_workers()
        return anew

    def run_name(self, run: str) -> str:
        return str(self.api.get(f"/flow_runs/{run}")["name"])

    def in_mid_batch(self, output: Path, limit_s: float = 120) -> None:
        """Wait until some answers are stored, and shards are under way."""
        self.until(lambda: list(output.glob("builds/*/work/shard-*/batch-*.parquet")), limit_s)

    def until(self, moment: Callable[[], Any], limit_s: float) -> Any:
        limit = time.monotonic() + limit_s
        while not (found := moment()):
            assert time.monotonic() < limit, "it never came"
            time.sleep(0.05)
        return found

    def running_shard(self, run: str) -> dict[str, Any]:
        """The run of a shard of a build that is Running."""
        build = self.run_name(run)

        def found() -> list[dict[str, Any]]:
            runs = self.api.shards(build).values()
            return [one for one in runs if one["state_type"] == "RUNNING"]

        return self.until(found, 60)[0]

    def flow_process(self, run: str) -> int:
        """The process a run's flow runs in: below the guardian that Prefect knows of."""
        told = str(self.api.get(f"/flow_runs/{run}")["infrastructure_pid"])
        return min(descendants(int(told.rpartition(":")[2])))

    def dataset(self, output: Path) -> dict[str, bytes]:
        """The published files, by name (which holds their digest)."""
        build = json.loads((output / "latest.json").read_bytes())["build"]
        folder = output / "builds" / build
        paths = [
            path for part in ("data", "jsonl", "rejected") for path in folder.glob(f"{part}/*")
        ]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def is_whole(self, run: str, output: Path, limit_s: float = 240) -> None:
        """The build is published as if nothing had happened; nobody is left over."""
        self.until((output / "latest.json").exists, limit_s)
        build = self.run_name(run)
        for one in [{"id": run}, *self.api.shards(build).values()]:
            self.api.wait(one["id"], limit_s=120)
        counts = json.loads((output / "builds" / build / "build.json").read_bytes())["counts"]
        assert (counts["rows"], counts["answered"]) == (ROWS, ROWS)
        assert self.dataset(output) == self.undisturbed
        self.until(lambda: not self._processes("prefect.engine"), 30)

    def _processes(self, word: str) -> dict[int, str]:
        found = family(self.pool.mark).items()
        return {pid: words for pid, words in found if word in words and "guardian" not in words}

    def engines(self) -> dict[int, str]:
        return self._processes("support.standin --" if STAND_IN else "VLLM::EngineCor")


@pytest.fixture(scope="module")
def killing(service: Pool, tmp_path_factory: pytest.TempPathFactory) -> Killing:
    # dead runs are noticed sooner than an operator would want it
    command = ("-m", "deployments.setup", "--zombie-after-s", str(ZOMBIE_S))
    service.command(sys.executable, *command)
    killing = Killing(service, tmp_path_factory.mktemp("kills"))
    run, output = killing.start("undisturbed")
    killing.api.expect(run, "COMPLETED", limit_s=240)
    killing.undisturbed = killing.dataset(output)
    assert len(killing.undisturbed) == 2 * ROWS / SHARD_ROWS
    return killing


def test_a_killed_shard_is_taken_up_again_by_itself(killing: Killing):
    run, output = killing.start("flow")
    killing.in_mid_batch(output)
    shard = killing.running_shard(run)
    os.kill(killing.flow_process(shard["id"]), signal.SIGKILL)

    killing.is_whole(run, output)
    assert killing.api.state(run)["type"] == "COMPLETED"
    assert killing.api.get(f"/flow_runs/{shard['id']}")["run_count"] == 2


def test_without_its_parent_the_last_shard_publishes(killing: Killing):
    run, output = killing.start("parent")
    killing.in_mid_batch(output)
    killing.until(lambda: len(killing.api.shards(killing.run_name(run))) == ROWS / SHARD_ROWS, 60)
    os.kill(killing.flow_process(run), signal.SIGKILL)

    killing.is_whole(run, output)
    assert killing.api.state(run)["type"] == "CRASHED"
    killing.api.set_state(run, "SCHEDULED", "AwaitingRetry")
    killing.api.wait(run, "PENDING", "RUNNING", "COMPLETED")
    killing.api.expect(run, "COMPLETED")


def test_a_killed_engine_is_started_again_and_its_shards_go_on(killing: Killing):
    run, output = killing.start("engine")
    killing.in_mid_batch(output)
    before = killing.engines()
    os.kill(min(before), signal.SIGKILL)

    killing.is_whole(run, output)
    assert killing.api.state(run)["type"] == "COMPLETED"
    again = killing.until(lambda: len(killing.engines()) == len(before), 240)
    assert again
    assert min(before) not in killing.engines()


def test_a_restarted_server_costs_at_most_one_retry(killing: Killing):
    run, output = killing.start("server")
    killing.in_mid_batch(output)
    killing.pool.stop_server()
    time.sleep(3)
    killing.pool.start_server()

    state = killing.api.wait(run, limit_s=240)
    if state["type"] != "COMPLETED":
        killing.api.set_state(run, "SCHEDULED", "AwaitingRetry")
    killing.is_whole(run, output)


def test_a_worker_told_to_stop_drains_and_another_one_does_the_rest(killing: Killing):
    run, output = killing.start("sigterm")
    killing.in_mid_batch(output)
    worker = killing.worker("gpu-b")
    worker.terminate()

    assert worker.ended(120) == 0, worker.log
    killing.is_whole(run, output)
    assert killing.api.state(run)["type"] == "COMPLETED"
    shards = killing.api.shards(killing.run_name(run)).values()
    assert [shard["run_count"] for shard in shards] == [1] * len(shards)
    assert len(killing.engines()) == 1


def test_the_shards_of_a_killed_worker_go_to_another_one(killing: Killing):
    worker = killing.worker("gpu-b")
    if worker.process.poll() is not None:
        worker = killing.replace(worker)
    run, output = killing.start("sigkill")
    killing.in_mid_batch(output)
    killing.until(lambda: len(killing.engines()) == 2, 60)
    worker.kill()

    killing.until(lambda: len(killing.engines()) == 1, 60)
    killing.is_whole(run, output, limit_s=300)
    assert killing.api.state(run)["type"] == "COMPLETED"
    killing.pool.workers.remove(worker)


def test_no_run_of_any_build_is_left_running(killing: Killing):
    left = {"RUNNING", "PENDING", "CANCELLING"}
    runs = killing.api.flow_runs()
    assert [run["name"] for run in runs if run["state_type"] in left] == []
