"""An engine of ours: on the loopback alone, its key and files for its owner alone."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from earwitness.engine.client import Engine
from earwitness.engine.front import EngineFront
from earwitness.engine.guardian import descendants
from earwitness.engine.server import EngineServer
from earwitness.errors import EngineStartError
from earwitness.settings import EngineSettings

STANDIN = (sys.executable, "-m", "tests.support.standin")
LOOPBACK = "0100007F"
LISTENS = "0A"


@pytest.fixture(autouse=True)
def _lenient(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = os.umask(0)
    yield
    os.umask(before)


def listening(port: int) -> set[str]:
    """Addresses of this machine at which somebody listens on a port, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, its_port = local.partition(":")
            if state == LISTENS and int(its_port, 16) == port:
                found.add(address)
    return found


def umask(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:"))


def command_lines() -> str:
    lines = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                lines.append((entry / "cmdline").read_text(errors="replace"))
            except OSError:
                continue
    return "\n".join(lines)


async def test_nobody_else_reaches_reads_or_learns_the_key_of_an_engine(tmp_path):
    settings = EngineSettings(command=STANDIN)
    server = EngineServer(settings, "demo", scratch=tmp_path / "scratch", clips_per_prompt=1)
    try:
        address = await server.start()
        port = int(address.url.rpartition(":")[2])
        assert listening(port) == {LOOPBACK}
        assert server._api_key not in command_lines()
        assert stat.S_IMODE(server.log_path.stat().st_mode) == 0o600
        assert stat.S_IMODE(server.log_path.parent.stat().st_mode) == 0o700
        assert {umask(pid) for pid in descendants(server.pid)} == {"0077"}
    finally:
        await server.stop()


async def test_a_front_listens_on_the_loopback_alone_and_wants_its_own_key(tmp_path):
    engine = Engine(
        EngineSettings(command=STANDIN),
        "demo",
        scratch=tmp_path,
        clips_per_prompt=1,
        log_path=tmp_path / "log",
    )
    async with engine, EngineFront(engine, scratch=tmp_path) as front:
        port = int(front.url.removesuffix("/v1").rpartition(":")[2])
        assert listening(port) == {LOOPBACK}
        assert front.key != engine.server._api_key
        assert front.key not in command_lines()


async def test_an_engine_that_prints_our_secrets_does_not_have_them_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_hiddenhidden")
    program = (
        "import os; open('made', 'w'); e = os.environ;"
        "raise SystemExit('ValueError: no access with ' + e['HF_TOKEN'] + ' ' + e['VLLM_API_KEY'])"
    )
    monkeypatch.chdir(tmp_path)
    settings = EngineSettings(command=(sys.executable, "-c", program))
    server = EngineServer(settings, "demo", scratch=tmp_path / "scratch", clips_per_prompt=1)
    with pytest.raises(EngineStartError, match="no access with") as failed:
        await server.start()
    assert str(failed.value).startswith("the engine did not start: no access with *** ***")
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o600
