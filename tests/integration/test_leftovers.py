"""What a SIGKILL of everything leaves behind is removed by whoever starts next."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deployments.processes import marked
from earwitness.engine.client import Engine
from earwitness.engine.guardian import descendants
from earwitness.settings import EngineSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "EARWITNESS_TEST_RUN"
MEMORY = Path("/dev/shm")
LIMIT_S = 60
STARTED = "started"

DECODERS = """
import sys, time
from earwitness.audio.pool import DecodePool
pool = DecodePool(1)
pool.submit(max, 1, 2).result()
print("started", flush=True)
time.sleep(600)
"""

ENGINE = """
import os, socket, sys
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from tests.support.standin import main
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")  # as when it is killed, too
with Path(sys.argv[1]).open("a") as names:
    names.write(memory.name + "\\n")
if "VLLM_RPC_BASE_PATH" in os.environ:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.environ["VLLM_RPC_BASE_PATH"] + "/11111111-2222-3333-4444-555555555555")
main(sys.argv[2:])
"""

OWNER = """
import asyncio, sys
from pathlib import Path
from earwitness.engine.server import EngineServer
from earwitness.settings import EngineSettings
async def serve():
    folder = Path(sys.argv[1])
    command = (sys.executable, "-c", sys.argv[2], str(folder / "names"))
    server = EngineServer(
        EngineSettings(command=command), "demo", scratch=folder, clips_per_prompt=1,
        log_path=folder / "log",
    )
    await server.start()
    print("started", flush=True)
    await asyncio.sleep(600)
asyncio.run(serve())
"""

NEXT = "from earwitness.scratch import scratch_folder\nwith scratch_folder(): pass"


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t")


@contextmanager
def started(temporary: Path, mark: str, *words: str) -> Iterator[None]:
    """A process of ours with everything below it, all killed at once at the end of the block."""
    env = {**os.environ, "TMPDIR": str(temporary), MARK: mark}
    command = [sys.executable, "-c", *words]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == STARTED
        yield
        everything = marked(f"{MARK}={mark}")
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: nobody cleans up
            for pid in everything:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
    limit = time.monotonic() + LIMIT_S
    while marked(f"{MARK}={mark}"):
        assert time.monotonic() < limit
        time.sleep(0.05)


def start_next(temporary: Path) -> None:
    env = {**os.environ, "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", NEXT], env=env, check=True)


def test_what_killed_decoders_leave_is_removed_by_the_next_start(temporary: Path):
    with started(temporary, f"decoders-{temporary.name}", DECODERS):
        pass
    assert list(temporary.iterdir()) != []
    start_next(temporary)
    assert list(temporary.iterdir()) == []


def test_decoders_that_live_keep_what_is_theirs(temporary: Path):
    with started(temporary, f"living-{temporary.name}", DECODERS):
        before = list(temporary.iterdir())
        start_next(temporary)
        assert list(temporary.iterdir()) == before


def test_what_a_killed_engine_leaves_is_removed_by_the_next_start(temporary: Path, tmp_path: Path):
    with started(temporary, f"engine-{temporary.name}", OWNER, str(tmp_path), ENGINE):
        pass
    (name,) = (tmp_path / "names").read_text().split()
    assert (MEMORY / name).exists()
    start_next(temporary)
    assert list(temporary.iterdir()) == []
    assert not (MEMORY / name).exists()


def test_an_engine_that_lives_keeps_what_is_its(temporary: Path, tmp_path: Path):
    with started(temporary, f"engine-lives-{temporary.name}", OWNER, str(tmp_path), ENGINE):
        (name,) = (tmp_path / "names").read_text().split()
        before = list(temporary.iterdir())
        start_next(temporary)
        assert list(temporary.iterdir()) == before
        assert (MEMORY / name).exists()
    start_next(temporary)


async def test_an_engine_that_dies_leaves_no_shared_memory_when_it_is_started_again(
    tmp_path: Path,
):
    command = (sys.executable, "-c", ENGINE, str(tmp_path / "names"))
    engine = Engine(
        EngineSettings(command=command),
        "demo",
        scratch=tmp_path,
        clips_per_prompt=1,
        log_path=tmp_path / "log",
    )
    async with engine:
        await engine.start()
        assert engine.server is not None
        guardian = engine.server.pid
        assert guardian is not None
        leader = min(descendants(guardian))
        os.kill(leader, signal.SIGKILL)
        limit = time.monotonic() + LIMIT_S
        while len(names := (tmp_path / "names").read_text().split()) < 2:
            assert time.monotonic() < limit
            await asyncio.sleep(0.05)
        assert not (MEMORY / names[0]).exists()
        assert (MEMORY / names[1]).exists()
    assert not (MEMORY / names[1]).exists()
