"""Builds killed at every stage, and started again with the same command.

Moments are not timed but held: a gate before the object storage keeps one request back (the plan,
a clip, a batch's segment, a receipt, the pointer), the build is killed there, the request is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from workbench import (
    CREDENTIALS,
    Published,
    StandIn,
    record,
    tone,
    write_clip,
    write_manifest,
)

from tests.chaos.builds import MARKER, processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from workbench import S3Server

ROOT = Path(__file__).parents[2]
LIMIT_S = 180
GONE_WITHIN_S = 60

ROWS, CLIPS, SHARD_ROWS, BATCH_ROWS, WINDOW = 150, 24, 50, 10, 2
LAYOUT = ("--shard-rows", SHARD_ROWS, "--batch-rows", BATCH_ROWS, "--window-batches", WINDOW)
MISSING, SILENT = 70, 120
TWINS = range(30, SHARD_ROWS)
"""Rows that ask what the first rows asked: two whole batches that cost nothing."""
UNIQUE = ROWS - len(TWINS) - 2
ENGINE = ("--latency-s", "0.1", "--slots", "4")

MOMENTS = {
    "planning": r"PUT \S*/plan/shard-00001\.jsonl",
    "fetching": r"GET \S*/clips/7\.wav",
    "generating": r"PUT \S*/work/shard-00000/batch-00002-",
    "between files and receipt": r"PUT \S*/receipts/shard-00001\.json",
    "publishing": r"PUT \S*/latest\.json",
}
WAYS: dict[str, Callable[[int], None]] = {
    "group": lambda pid: os.killpg(pid, signal.SIGKILL),
    "alone": lambda pid: os.kill(pid, signal.SIGKILL),
}


class Run:
    """One start of `earwitness build`, in a session of its own, its children marked."""

    def __init__(self, *words: Any, env: dict[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        command = [sys.executable, "-m", "cli.main", "build", *words, "--no-print"]
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**(os.environ if env is None else env), MARKER: self.mark},
            start_new_session=True,
        )

    def until(self, moment: Callable[[], object]) -> Self:
        limit = time.monotonic() + LIMIT_S
        while not moment():
            if self._process.poll() is not None or time.monotonic() > limit:
                self._process.kill()
                pytest.fail(f"the moment never came: {self._process.communicate()[1]}")
            time.sleep(0.01)
        return self

    def kill(self, way: Callable[[int], None]) -> None:
        """Kill it; nothing that it started may stay."""
        assert self.processes(), "nothing is there to be killed"
        way(self._process.pid)
        assert self._process.wait(LIMIT_S) == -signal.SIGKILL
        self._nothing_is_left()

    def interrupt(self) -> tuple[int, str]:
        os.killpg(self._process.pid, signal.SIGINT)
        return self.end()

    def end(self) -> tuple[int, str]:
        _, err = self._process.communicate(timeout=LIMIT_S)
        self._nothing_is_left()
        return self._process.returncode, err

    def processes(self) -> dict[int, str]:
        """All living processes it started, whoever their parent is by now."""
        return processes(self.mark)

    def _nothing_is_left(self) -> None:
        limit = time.monotonic() + GONE_WITHIN_S
        while left := self.processes():
            assert time.monotonic() < limit, f"left behind: {left}"
            time.sleep(0.05)


def finish(*words: Any, env: dict[str, str] | None = None) -> str:
    """Run it to its end; what it said."""
    status, err = Run(*words, env=env).end()
    assert status == 0, err
    return err


@dataclass
class Gate:
    """A proxy before a server: keeps back the first request that matches, and those after it.

    Every chunk a client sends begins with a request or belongs to one that has passed.
    """

    target: tuple[str, int]
    _pattern: re.Pattern[bytes] | None = None
    _held: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def hold(self, request: str) -> Callable[[], bool]:
        """Keep such a request back; gives whether it came."""
        self._held, self._pattern = threading.Event(), re.compile(rb"\A" + request.encode())
        return self._held.is_set

    def open(self) -> None:
        """Let everything pass; what was kept back is lost."""
        self._pattern = None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self.target)
                for pump in (self._requests, self._answers):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(2**18):
                if self._pattern is not None and self._pattern.match(data):
                    self._held.set()
                    while client.recv(2**18):
                        pass  # until the client dies
                    return
                server.sendall(data)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(2**18):
                client.sendall(data)


def write_dataset(folder: Path) -> Path:
    """Clips and a manifest; the same bytes wherever they are written."""
    for number in range(CLIPS):
        write_clip(folder / "clips" / f"{number}.wav", tone(200 + 30 * number, 0.08))
    write_clip(folder / "clips" / "silent.wav", tone(300) * 0)
    names = {MISSING: "clips/none.wav", SILENT: "clips/silent.wav"}
    records = []
    for row in range(ROWS):
        asked = row - TWINS.start if row in TWINS else row
        clip = names.get(row, f"clips/{asked % CLIPS}.wav")
        records.append(record(clip, f"What is number {asked}?", id=row))
    return write_manifest(folder / "m.jsonl", records)


def files(output: Path) -> dict[str, bytes]:
    """Data and rejections as published, with whatever else lies beside them."""
    folder = Published(output).folder
    parts = [folder / "data", folder / "jsonl", folder / "rejected"]
    paths = [path for part in parts for path in part.iterdir()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def facts(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Published(output).folder / "build.json").read_text())
    return found


def builds(output: Path, document: str) -> list[str]:
    return [path.parent.name for path in (output / "builds").glob(f"*/{document}")]


def segments(output: Path, shard: int = 0) -> int:
    """Batches of a shard whose answers are stored."""
    return len(list(output.glob(f"builds/*/work/shard-{shard:05d}/batch-*.parquet")))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    server = StandIn(tmp_path_factory.mktemp("engine") / "log", *ENGINE)
    yield server
    server.stop()


@dataclass
class Lake:
    """The dataset on object storage, behind a gate."""

    gate: Gate
    env: dict[str, str]
    folder: Path
    engine: StandIn

    def words(self, output: str) -> tuple[Any, ...]:
        uri = f"s3://{self.folder.name}"
        return (f"{uri}/m.jsonl", f"{uri}/{output}", "--engine", self.engine.url, *LAYOUT)


@pytest.fixture(scope="module")
def lake(
    s3_server: S3Server,
    engine: StandIn,
    prefect_server: str,  # noqa: ARG001 - commands find its address in the environment
) -> Iterator[Lake]:
    folder = s3_server.folder / "kills"
    write_dataset(folder)
    host, _, port = s3_server.url.removeprefix("http://").partition(":")
    with Gate((host, int(port))) as gate:
        key, secret = CREDENTIALS
        aws = {"AWS_ENDPOINT_URL": gate.url, "AWS_DEFAULT_REGION": "us-east-1"}
        keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        yield Lake(gate, {**os.environ, **aws, **keys}, folder, engine)


@pytest.fixture(scope="module")
def undisturbed(lake: Lake) -> Path:
    before = lake.engine.asked()
    finish(*lake.words("undisturbed"), env=lake.env)
    assert lake.engine.asked() - before == UNIQUE
    return lake.folder / "undisturbed"


def test_killed_at_every_stage_it_ends_as_if_nothing_had_happened(lake: Lake, undisturbed: Path):
    words, output = lake.words("killed"), lake.folder / "killed"
    # each moment one way: `python -m tests.chaos --only kills` draws both for all of them
    ways = cycle(WAYS.values())
    before = lake.engine.asked()
    for moment, request in MOMENTS.items():
        build = Run(*words, env=lake.env).until(lake.gate.hold(request))
        asked = lake.engine.asked() - before
        if moment in {"planning", "fetching"}:
            assert asked == 0
        if moment == "generating":
            assert 0 < asked < UNIQUE
            assert segments(output) > 0
        build.kill(next(ways))
        lake.gate.open()
        assert not (output / "latest.json").exists()
    said = finish(*words, env=lake.env)

    (planned,) = builds(output, "plan.json")
    assert builds(output, "build.json") == [planned] == [Published(output).folder.name]
    assert f"build {planned} (continued)" in said
    assert files(output) == files(undisturbed)
    assert facts(output)["counts"] == facts(undisturbed)["counts"]
    assert not (Published(output).folder / "work").exists()
    assert lake.engine.asked() - before <= UNIQUE + WINDOW * BATCH_ROWS


def test_a_build_is_not_started_twice_at_once_and_ctrl_c_leaves_it_to_be_continued(
    lake: Lake, undisturbed: Path
):
    words, output = lake.words("twice"), lake.folder / "twice"
    before = lake.engine.asked()
    first = Run(*words, env=lake.env).until(lake.gate.hold(MOMENTS["generating"]))
    (planned,) = builds(output, "plan.json")
    status, err = Run(*words, env=lake.env).end()
    assert status == 1
    assert f"error: {planned} is being built by process" in err.splitlines()[-1]

    pressed = time.monotonic()
    status, err = first.interrupt()
    assert (status, err.splitlines()[-1].endswith("the same command again to continue")) == (
        130,
        True,
    )
    assert time.monotonic() - pressed < GONE_WITHIN_S
    lake.gate.open()
    assert f"build {planned} (continued)" in finish(*words, env=lake.env)
    assert builds(output, "plan.json") == [planned]
    assert files(output) == files(undisturbed)
    assert lake.engine.asked() - before <= UNIQUE + WINDOW * BATCH_ROWS


def test_killed_with_an_engine_and_a_prefect_server_of_its_own_it_leaves_nothing(tmp_path: Path):
    manifest, output = write_dataset(tmp_path), tmp_path / "out"
    scratch, model = tmp_path / "scratch", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    env = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PREFECT_HOME": str(tmp_path / "prefect"), "EARWITNESS_SCRATCH": str(scratch)}
    command = shlex.join([sys.executable, "-m", "tests.support.standin", *ENGINE])
    engine = ("--model", model, "--command", command, *LAYOUT)
    finish(manifest, tmp_path / "undisturbed", *engine, env=env)

    for shard, way in enumerate(WAYS):
        build = Run(manifest, output, *engine, env=env)
        build.until(lambda shard=shard: segments(output, shard) > 0)
        running = " ".join(build.processes().values())
        for part in ("support.standin", "uvicorn", "guardian.py", "forkserver"):
            assert part in running
        build.kill(WAYS[way])
    # what a kill leaves that comes while a file is written
    (half,) = (path / "data" for path in (output / "builds").iterdir())
    (half / ".tmp-0123456789ab").write_bytes(b"half a fi")
    finish(manifest, output, *engine, env=env)

    assert len(builds(output, "plan.json")) == 1
    assert files(output) == files(tmp_path / "undisturbed")
    assert facts(output)["counts"] == facts(tmp_path / "undisturbed")["counts"]
    assert list(scratch.iterdir()) == []
