"""When an engine of our own is given up: for deaths that come together, not over its whole life."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from earwitness.engine.endpoints import Endpoint, Endpoints
from earwitness.engine.guardian import descendants
from earwitness.engine.keepers import ServerKeeper
from earwitness.engine.server import EngineServer
from earwitness.errors import EngineStartError
from earwitness.settings import EngineSettings

if TYPE_CHECKING:
    from pathlib import Path

STANDIN = (sys.executable, "-m", "tests.support.standin")


async def killed(folder: Path, times: int, *, pause_s: float, forget_s: float) -> Endpoints:
    """An engine that may be restarted once, killed so often with pauses between."""
    settings = EngineSettings(command=STANDIN)
    log = folder / "log"
    server = EngineServer(settings, "demo", scratch=folder, clips_per_prompt=1, log_path=log)
    endpoints = Endpoints([Endpoint(None)], room=1)
    keeper = ServerKeeper(
        endpoints, server, max_restarts=1, stall_s=60, watch_s=0.1, forget_s=forget_s
    )
    await keeper.start()
    try:
        for _ in range(times):
            await asyncio.sleep(pause_s)
            if server.pid is not None:
                os.kill(min(descendants(server.pid)), signal.SIGKILL)
            async with asyncio.timeout(30):
                await until_up(endpoints, endpoints.all[0].deaths + 1)
    finally:
        await keeper.close()
    return endpoints


async def until_up(endpoints: Endpoints, deaths: int) -> None:
    while endpoints.all[0].deaths < deaths or not endpoints.any_up:
        endpoints.raise_failure()
        await asyncio.sleep(0.02)


async def test_deaths_that_come_together_end_the_engine(tmp_path: Path):
    with pytest.raises(EngineStartError, match="it ended unexpectedly 2 times"):
        await killed(tmp_path, 3, pause_s=0.0, forget_s=600)


async def test_deaths_do_not_add_up_over_an_engine_that_runs_for_long_between_them(tmp_path: Path):
    await killed(tmp_path, 3, pause_s=0.6, forget_s=0.5)
